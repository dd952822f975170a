"""Misuse of first_cpp.Llama: errors instead of crashes, and a model that goes on as if nothing had been."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import threading

import llama_cpp
import numpy as np
import pytest
from helpers import greedy, run_tokens, survives, tokens
from routers_files import routed_model

import first_cpp
from first_cpp import BusyError, ClosedError, Llama, MissingFileError
from first_cpp.errors import StateError
from first_cpp.gguf.synthetic import SHAPES, write_random

PROMPT = tokens(40, seed=3)


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=21)


@pytest.mark.parametrize("how", ["cut", "shorter than it says", "zeros", "of another model", "longer than the context"])
def test_a_state_that_cannot_be_restored_resets_the_model(routed, models, load, how):
    """Stock raises too, and goes on from the tokens of the state with a KV cache that holds none of them."""
    llm = load(routed, skip=[1])
    greedy(llm, PROMPT, 6)
    state = llm.save_state()
    if how == "cut":
        state.llama_state = state.llama_state[:-1000]
        state.llama_state_size -= 1000
    elif how == "shorter than it says":
        state.llama_state = state.llama_state[:100]
    elif how == "zeros":
        state.llama_state = bytes(len(state.llama_state))
    elif how == "of another model":
        other = models / "two-layers.gguf"
        write_random(other, dataclasses.replace(SHAPES["tiny"], n_layer=2))
        state = load(other)
        state.eval(PROMPT)
        state = state.save_state()
    else:
        state.n_tokens = 10_000
    with pytest.raises(StateError, match="the model was reset"):
        llm.load_state(state)
    assert llm.n_tokens == 0
    assert greedy(llm, PROMPT, 6) == greedy(load(routed, skip=[1]), PROMPT, 6)
    with pytest.raises(TypeError, match="what save_state gives, not str"):
        llm.load_state("a state")
    assert llm.n_tokens == len(PROMPT) + 5


def test_a_state_of_another_context_length(routed, load):
    """llama_cpp takes the state's array of tokens for its own, of another length."""
    small, large = load(routed, skip=[1], n_ctx=256), load(routed, skip=[1], n_ctx=512)
    longer = PROMPT + greedy(small, PROMPT, 6)
    large.load_state(small.save_state())
    assert large.n_tokens == small.n_tokens
    assert greedy(large, longer, 4) == greedy(load(routed, skip=[1]), longer, 4)
    long = tokens(300, seed=4)
    assert greedy(large, long, 4) == greedy(load(routed, skip=[1]), long, 4)


def test_closed_model_raises(routed, load):
    llm = load(routed, skip=[1])
    suspended = llm.generate(PROMPT)
    next(suspended)
    llm.close()
    llm.close()
    for use in (
        lambda: llm.eval([1]),
        lambda: llm("hello"),
        lambda: llm.tokenize(b"hello"),
        lambda: llm.detokenize([5]),
        llm.save_state,
        llm.sample,
        llm.n_vocab,
        lambda: next(suspended),
        lambda: llm.create_chat_completion([{"role": "user", "content": "hi"}]),
        lambda: llm.hidden_states([1]),
    ):
        with pytest.raises((ClosedError, AssertionError)):
            use()


def test_use_after_close_does_not_kill_the_process(routed):
    done = survives(f"""
        from first_cpp import Llama, ClosedError
        llm = Llama({routed!r}, verbose=False)
        llm.eval([5, 6]); llm.close()
        for use in (llm.sample, llm.reset, llm.n_ctx, lambda: llm.eval([1]), lambda: llm.tokenize(b"x"), llm.token_eos,
                    lambda: llm.embed("x"), lambda: llm.load_state(None), llm.close, lambda: llm.ctx, lambda: llm.model):
            try: use()
            except (ClosedError, RuntimeError, AttributeError, AssertionError) as e: print(type(e).__name__)
        print("alive")
    """)
    assert "alive" in done.stdout, done.stderr


def test_constructor_that_fails_can_be_collected(tmp_path):
    done = survives(f"""
        from first_cpp import Llama
        for make in (lambda: Llama("none.gguf"), lambda: Llama({str(tmp_path)!r}), lambda: Llama("x", bad=1), lambda: Llama(3)):
            try: make()
            except (TypeError, ValueError): pass
    """)
    assert (done.returncode, done.stderr) == (0, "")


def test_second_thread_gets_an_error(routed):
    done = survives(f"""
        import threading
        from first_cpp import Llama, BusyError
        llm = Llama({routed!r}, verbose=False, skip=[1])
        told = []
        def work():
            for _ in range(30):
                try: llm.create_completion("hello there", max_tokens=20, temperature=0)
                except BusyError as e: told.append(str(e))
        threads = [threading.Thread(target=work) for _ in range(3)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print(len(told), set(told))
        print(llm.create_completion("hello there", max_tokens=5)["usage"]["completion_tokens"])
    """)
    count, said = re.match(r"(\d+) (.*)", done.stdout).groups()
    assert int(count) > 0, done.stderr
    assert "another thread" in said


def test_close_while_another_thread_works(routed, load):
    llm = load(routed, skip=[1])
    started, stop = threading.Event(), threading.Event()

    def criteria(ids, scores):
        started.set()
        return stop.wait(0.2) and False

    thread = threading.Thread(
        target=lambda: llm("hello", max_tokens=3, stopping_criteria=llama_cpp.StoppingCriteriaList([criteria]))
    )
    thread.start()
    started.wait()
    with pytest.raises(BusyError):
        llm.close()
    stop.set()
    thread.join()


def test_older_answer_cannot_go_on_after_a_newer_prompt(routed, load):
    llm = load(routed, skip=[1])
    old, new = llm.generate(PROMPT, temp=0.0), llm.generate(PROMPT[:20], temp=0.0)
    next(old)
    first = next(new)
    with pytest.raises(BusyError, match="newer prompt"):
        next(old)
    assert [first, next(new)] == greedy(load(routed, skip=[1]), PROMPT[:20], 2)


def test_empty_prompt_is_refused(routed, load):
    llm = load(routed)
    for _ in range(2):
        with pytest.raises(ValueError, match="no tokens"):
            next(llm.generate([]))
        greedy(llm, PROMPT, 2)


def test_refused_prompt_starts_no_answer(routed, load):
    """Else the next evals would be taken for its prefill and its decoding, and lose layers."""
    llm, dense = load(routed, skip=[1, 4]), load(routed, skip=None)
    with pytest.raises(ValueError, match="no tokens"):
        next(llm.generate([]))
    np.testing.assert_array_equal(run_tokens(llm, PROMPT, PROMPT[:4]), run_tokens(dense, PROMPT, PROMPT[:4]))


@pytest.mark.parametrize("name", ["a model with spaces.gguf", "modèle-日本.gguf"])
@pytest.mark.parametrize("kind", [str, pathlib.Path, lambda p: str(p).encode()], ids=["str", "Path", "bytes"])
def test_paths_of_every_kind(tiny, tmp_path, name, kind):
    path = tmp_path / name
    path.symlink_to(tiny)
    llm = Llama(kind(path), verbose=False)
    llm.close()


def test_home_folder_in_paths(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.gguf").symlink_to(tiny)
    Llama("~/m.gguf", verbose=False).close()


def test_missing_lora_is_an_error(tiny):
    with pytest.raises(MissingFileError, match="LoRA"):
        Llama(tiny, lora_path="none.gguf", verbose=False)


def test_hidden_states(tiny, load):
    llm = load(tiny, n_batch=16, n_ubatch=7)
    states = llm.hidden_states(PROMPT)
    assert states.shape == (7, 40, 128)
    np.testing.assert_allclose(states, load(tiny).hidden_states(PROMPT), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="1 to n_ctx"):
        llm.hidden_states([])
    assert greedy(llm, PROMPT, 5) == greedy(load(tiny), PROMPT, 5)


SIZES = [{"n_ubatch": 0}, {"n_batch": 1}, {"n_ubatch": 1}, {"n_ctx": 0}, {"n_ctx": 1}]


def test_sizes_that_the_base_class_takes(tiny):
    """Each with a model of its own, all in a process of theirs."""
    done = survives(f"""
        import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parents[1] / "support")!r})
        from first_cpp import Llama
        from helpers import greedy
        for settings in {SIZES!r}:
            llm = Llama({tiny!r}, verbose=False, skip=[1], **settings)
            print(greedy(llm, [5], 1) if llm.n_ctx() < 9 else greedy(llm, [5, 6, 7, 8], 4))
            llm.close()
    """)
    assert [line[0] for line in done.stdout.splitlines()] == ["["] * len(SIZES), done.stderr


def test_tokenizer_taken_before_close(tiny):
    done = survives(f"""
        from first_cpp import Llama, ClosedError
        llm = Llama({tiny!r}, verbose=False)
        tokenizer = llm.tokenizer()
        llm.close()
        try: tokenizer.encode("hi")
        except Exception as error: print(error)  # ctypes wraps the ClosedError
    """)
    assert "this Llama is closed" in done.stdout, done.stderr


def test_multimodal_handler_and_a_second_thread(routed):
    """Handlers decode images on the context itself: a chat completion is guarded as a whole."""
    done = survives(f"""
        import threading, llama_cpp
        from first_cpp import Llama, BusyError
        def handler(*, llama, messages, **kwargs):
            for _ in range(30):
                llama.reset()
                llama._ctx.kv_cache_clear()
                llama._batch.set_batch([5] * 40, 0, False)
                llama._ctx.decode(llama._batch)
            return "answered"
        llm = Llama({routed!r}, verbose=False, skip=[1], chat_handler=handler)
        told = []
        def work():
            for _ in range(60):
                try: llm.create_completion("hello there", max_tokens=9, temperature=0)
                except BusyError: told.append(1)
        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(9):
            try: llm.create_chat_completion([])
            except BusyError: told.append(2)
        thread.join()
        print(len(told) > 0)
    """)
    assert done.stdout == "True\n", done.stderr


def test_hidden_states_leave_nothing_behind(tiny, load):
    llm = load(tiny)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    llm.hidden_states(tokens(256))
    before = resident()
    for _ in range(60):
        llm.hidden_states(tokens(256))
    assert resident() - before < 20e6  # each holds 0.9 MB


def test_error_of_an_interrupted_eval_is_not_raised_by_the_next(routed, load):
    llm = load(routed, skip=0.5)
    misfit = first_cpp._ext.RouterScores([first_cpp._ext.Probe(0, 0, np.zeros(2, np.float32), 0.0, 1e-5, True)])
    llm._layers._hook.start_reading(misfit, ["embd"])
    llm._ctx.decode((llm._batch.set_batch([5], 0, False), llm._batch)[1])
    llm._layers.stop()
    assert greedy(llm, PROMPT, 4) == greedy(load(routed, skip=0.5), PROMPT, 4)


def test_leaving_out_of_a_model_that_cannot(routed, load):
    llm = load(routed, skip=None, release_kv=True)
    expected = greedy(load(routed, skip=None), PROMPT, 4)
    llm._layers.declare_dense(6, "its layers have no names")
    inside = llm.skipping([2])
    with pytest.warns(RuntimeWarning, match="dense"):
        inside.__enter__()
    try:
        assert greedy(llm, PROMPT, 4) == expected
        assert (llm.routing.skipped, llm.routing.kv_bytes_released) == ((), 0)
    finally:
        inside.__exit__(None, None, None)
