"""Bad input and bad luck: a clear Python error or the right answer, never the death of the process."""

from __future__ import annotations

import pathlib
import resource

import llama_cpp
import numpy as np
import pytest
from helpers import greedy, logits, survives, tokens
from routers_files import routed_model

from first_cpp import Llama, LogitsError, SettingError
from first_cpp._ext import GgufFile
from first_cpp.gguf.model_file import ModelFile

PROMPT = tokens(30, seed=3)


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=11)


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch"])
@pytest.mark.parametrize("value", [-1, -(2**40), 2**31, 12.5, "12", True, float("nan")], ids=repr)
def test_sizes_that_llama_cpp_does_not_survive(name, value):
    with pytest.raises(SettingError, match=rf"{name}={value!r} is not a whole number from . to \d+"):
        Llama("there is no such file", **{name: value})


def test_other_sizes_that_are_none():
    with pytest.raises(SettingError, match="n_batch=0"):
        Llama("there is no such file", n_batch=0)
    with pytest.raises(SettingError, match="n_threads=513"):
        Llama("there is no such file", n_threads=513)


@pytest.mark.parametrize("n_threads", [0, None, np.int64(2)], ids=repr)
def test_thread_counts_of_every_kind(tiny, load, n_threads):
    llm = load(tiny, n_threads=n_threads, n_threads_batch=n_threads)
    assert greedy(llm, PROMPT, 4) == greedy(load(tiny), PROMPT, 4)


def test_too_little_memory_for_the_kv_cache(tiny):
    done = survives(f"""
        import resource
        from first_cpp import Llama
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
        for _ in range(3):
            try: Llama({tiny!r}, n_ctx=2**24, verbose=False)
            except ValueError as error: print(error)
        llm = Llama({tiny!r}, n_ctx=256, verbose=False)
        print(len(llm.create_completion("hi", max_tokens=3)["choices"]))
    """)
    *refused, answered = done.stdout.splitlines()
    assert len(refused) == 3, done.stderr
    assert all("n_ctx=16777216" in line and "24 GiB" in line for line in refused)
    assert answered == "1"


# -- tokens and prompts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [-7, 99999, 2**31 - 1, 2**40, 5.5, "5"], ids=repr)
def test_tokens_that_are_none_leave_the_state_intact(routed, load, token):
    llm, fresh = load(routed, skip=0.34), load(routed, skip=0.34)
    llm.eval(PROMPT)
    fresh.eval(PROMPT)
    for use in (lambda: llm.eval([token]), lambda: next(llm.generate([*PROMPT, token], temp=0.0))):
        with pytest.raises((RuntimeError, TypeError, OverflowError, ValueError)):
            use()
    llm.eval([5])
    fresh.eval([5])
    np.testing.assert_allclose(logits(llm), logits(fresh), rtol=0, atol=0.03)
    assert greedy(llm, PROMPT, 6) == greedy(load(routed, skip=0.34), PROMPT, 6)


WORK = {
    "prefill": "llm.eval([5] * 4000)",
    "a completion": "llm.create_completion([5] * 3000, max_tokens=900)",
    "generate": "for _ in llm.generate([5] * 3000): pass",
    "embed": "llm.embed('a ' * 1500)",
}


@pytest.mark.parametrize("work", WORK)
def test_the_interpreter_ends_amid_work_of_a_daemon_thread(tiny, work):
    """Nothing is freed that the thread still uses (stock llama_cpp: SIGSEGV)."""
    done = survives(f"""
        import threading, time
        from first_cpp import Llama
        llm = Llama({tiny!r}, n_ctx=4096, n_batch=4096, n_ubatch=4096, verbose=False, embedding={work == "embed"})
        print("begun")
        def work():
            {WORK[work]}
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1)
        print("ended")
    """)
    assert (done.stdout, done.returncode) == ("begun\nended\n", 0)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("work", WORK)
def test_such_a_thread_ends_without_a_word(tiny, work):
    """However long the interpreter takes to end: the thread goes on, and finds its evaluation ended and the model gone."""
    done = survives(f"""
        import atexit, threading, time
        atexit.register(lambda: (time.sleep(0.5), print("after", thread.is_alive())))  # runs after those of later imports
        from first_cpp import Llama
        llm = Llama({tiny!r}, n_ctx=4096, n_batch=4096, n_ubatch=4096, verbose=False, embedding={work == "embed"})
        def work():
            while True:
                {WORK[work]}
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        time.sleep(0.1)
    """)
    assert (done.stdout, done.returncode) == ("after False\n", 0)
    assert "Traceback" not in done.stderr


def test_nothing_to_evaluate_is_nothing(tiny, load):
    llm = load(tiny)
    llm.eval([])
    llm.eval(PROMPT)
    before = logits(llm)
    llm.eval([])
    assert llm.n_tokens == len(PROMPT)
    np.testing.assert_array_equal(logits(llm), before)


@pytest.mark.parametrize("n_tokens", [255, 256, 257, 5000])
def test_prompt_as_long_as_the_context(tiny, load, n_tokens):
    llm = load(tiny, n_ctx=256)
    if n_tokens < 256:
        assert llm.create_completion(tokens(n_tokens), max_tokens=9)["usage"]["completion_tokens"] == 1
        return
    with pytest.raises(ValueError, match=rf"Requested tokens \({n_tokens}\) exceed context window of 256"):
        llm.create_completion(tokens(n_tokens))


@pytest.mark.parametrize("max_tokens", [0, None, -1])
def test_max_tokens_without_end_go_to_the_end_of_the_context(tiny, load, max_tokens):
    bias = {token: -100.0 for token in [2, *range(3 + 128, 3 + 256)]}  # no end, and no character cut in two
    usage = load(tiny, n_ctx=256).create_completion(PROMPT, max_tokens=max_tokens, logit_bias=bias)["usage"]
    assert usage["completion_tokens"] == 256 - 30


EXTREME = [
    *({"temperature": 1e9}, {"temperature": -3}, {"top_p": -1}, {"top_k": -5}, {"min_p": 9}),
    *({"repeat_penalty": float("inf")}, {"mirostat_mode": 7}, {"seed": -5}),
]


def test_extreme_sampling_answers_all_the_same(routed):
    """Each with a model of its own, all in a process of theirs."""
    done = survives(f"""
        from math import nan, inf
        from first_cpp import Llama
        for settings in {EXTREME!r}:
            print(settings, flush=True)
            llm = Llama({routed!r}, n_ctx=256, verbose=False)
            assert llm.create_completion([1, 5, 6], max_tokens=4, **settings)["usage"]["prompt_tokens"] == 3
            llm.close()
    """)
    assert (done.stdout.splitlines(), done.returncode) == ([str(one) for one in EXTREME], 0), done.stderr


@pytest.mark.parametrize("settings", [{"temperature": float("nan")}, {"repeat_penalty": 0}, {"min_p": float("nan")}], ids=str)
def test_sampling_that_leaves_no_token_is_refused(routed, load, settings):
    with pytest.raises(SettingError, match=f"{next(iter(settings))[:4]}.*=(nan|0)"):
        load(routed).create_completion([1, 5, 6], max_tokens=4, **settings)


def test_the_dial_turned_amid_an_answer_is_for_the_next_prompt(routed, load):
    llm, fixed = load(routed, skip=[1, 4]), load(routed, skip=[1, 4])
    answer = llm.generate(PROMPT, temp=0.0)
    found = [next(answer) for _ in range(4)]
    llm.skip = [0]
    found += [next(answer) for _ in range(4)]
    assert found == greedy(fixed, PROMPT, 8)
    assert llm.routing.skipped == (1, 4)
    greedy(llm, PROMPT, 1)
    assert llm.routing.skipped == (0,)


def test_a_prompt_is_read_with_quantised_weights(tiny_q8):
    """llama.cpp, compiled as the Makefile does, keeps clear of AMX code that GCC 12 breaks."""
    done = survives(f"""
        import llama_cpp
        llm = llama_cpp.Llama({tiny_q8!r}, n_ctx=256, verbose=False)
        llm.eval([5] * 64)
        print(llm.n_tokens)
    """)
    assert done.stdout == "64\n", done.stderr


# -- memory and handles -------------------------------------------------------------------------------------------------


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def handles() -> int:
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
def test_many_answers_leave_memory_flat(routed, load):
    """2,000 answers whose share changes, with second turns, states and cancelled ones among them."""
    llm = load(routed, skip=0.5)
    rng = np.random.default_rng(0)

    def answer(n: int) -> None:
        llm.skip = float(rng.choice([0, 0.17, 0.34, 0.5, 0.67]))
        prompt = tokens(int(rng.integers(2, 40)), seed=n % 50)
        made = greedy(llm, prompt, 2)
        if n % 5 == 0:
            greedy(llm, prompt + made + [7, 8], 1)
        if n % 50 == 0:
            llm.load_state(llm.save_state())
        if n % 7 == 0:
            abandoned = llm.generate(prompt, temp=0.5)
            next(abandoned)

    for n in range(300):
        answer(n)
    before = resident()
    for n in range(2000):
        answer(n)
    assert resident() - before < 3 << 20


@pytest.mark.slow
def test_many_loads_leave_memory_and_handles_flat(routed):
    def load_and_close() -> None:
        llm = Llama(routed, skip=0.34, n_ctx=256, verbose=False)
        next(llm.generate(PROMPT, temp=0.0))
        llm.close()

    for _ in range(200):  # until the allocator has what it keeps
        load_and_close()
    before, open_files = resident(), handles()
    for _ in range(500):
        load_and_close()
    assert handles() <= open_files
    assert resident() - before < 8 << 20


# -- large files --------------------------------------------------------------------------------------------------------


def test_tensors_beyond_4_gib(tiny, tmp_path):
    """The tiny model behind 5 GiB of nothing: offsets do not fit into 32 bits. The file is sparse."""
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "head.gguf"), "llama")
    writer.add_block_count(1)
    hole = 5 << 30
    writer.add_tensor_info("blk.0.ffn_up.weight", (hole // 4096, 1024), np.dtype(np.float32), hole)
    norm = np.arange(64, dtype=np.float32)
    writer.add_tensor_info("output_norm.weight", norm.shape, norm.dtype, norm.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    head = (tmp_path / "head.gguf").read_bytes()
    path = tmp_path / "large.gguf"
    with open(path, "wb") as out:
        out.write(head + b"\0" * (-len(head) % 32))
        out.seek(hole, 1)
        out.write(norm.tobytes())
    found = {tensor.name: tensor for tensor in GgufFile(str(path)).tensors()}
    assert found["output_norm.weight"].offset > 2**32
    first = ModelFile.open(path).fingerprint
    with open(path, "r+b") as out:
        out.seek(-4, 2)
        out.write(np.float32(1).tobytes())
    assert ModelFile.open(path).fingerprint != first


def test_an_answer_goes_on_when_the_file_is_replaced(routed, tmp_path, load):
    """Replaced as `convert` and careful programs do it, by renaming: the old file stays mapped."""
    path = tmp_path / "model.gguf"
    path.write_bytes(pathlib.Path(routed).read_bytes())
    llm = load(path, skip=0.34)
    expected = greedy(load(routed, skip=0.34), PROMPT, 6)
    (tmp_path / "new").write_bytes(b"something else")
    (tmp_path / "new").replace(path)
    assert greedy(llm, PROMPT, 6) == expected


def test_stock_settings_still_load(tiny, load):
    stock = load(tiny, llama_cpp.Llama, n_ctx=0, n_ubatch=0)
    assert greedy(load(tiny, n_ctx=0, n_ubatch=0), PROMPT, 4) == greedy(stock, PROMPT, 4)


# -- models -------------------------------------------------------------------------------------------------------------


def test_hidden_states_that_are_not_finite_keep_their_layers(routed, tmp_path, load):
    """A NaN from layer 3 on: scores from there count as "keep", and are counted."""
    import shutil

    from gguf import GGUFReader

    path = shutil.copy(routed, tmp_path / "nan.gguf")
    for tensor in GGUFReader(path, "r+").tensors:
        if tensor.name == "blk.3.ffn_down.weight":
            tensor.data[:] = np.nan
    llm = load(path, skip=0.34)
    with pytest.raises(LogitsError):  # the prompt has decided before
        greedy(llm, PROMPT, 1)
    assert llm.routing.keep[4:] == (1.0, 1.0)
    assert set(llm.routing.skipped) <= {0, 1, 2, 3}
    assert llm._read._scores.not_finite == 2 * len(PROMPT)


def test_empty_prompt_of_a_vocabulary_without_a_first_token(tmp_path, load, monkeypatch):
    import gguf

    from first_cpp.gguf import synthetic

    add = synthetic.add_vocabulary

    def without_bos(writer: gguf.GGUFWriter, n_vocab: int) -> None:
        add(writer, n_vocab)
        writer.add_add_bos_token(False)

    monkeypatch.setattr(synthetic, "add_vocabulary", without_bos)
    synthetic.write_random(tmp_path / "m.gguf", synthetic.SHAPES["tiny"])
    llm = load(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        llm.create_completion("")
    assert llm.create_completion("a", max_tokens=2)["usage"]["prompt_tokens"] >= 1
