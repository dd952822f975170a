"""What of an answer is read again, and that no KV row of a layer that it skipped is."""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
import pytest
from architectures.shapes import N_VOCAB
from architectures.write import write_tiny
from helpers import greedy, logits, tokens
from routers_files import routed_model
from second_turn import CLOSE, MORE, PROMPT, second_turn

from first_cpp import LogitsError


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=11)


def test_continuing_reads_the_answer_again(routed, load):
    """generate(reset=False) appends to what is there; the answer so far is read with all layers first."""
    used, fresh = load(routed, skip=[1, 4]), load(routed, skip=[1, 4])
    first = greedy(used, PROMPT, 10)[:9]  # the tenth was sampled and not evaluated
    assert greedy(used, MORE, 8, reset=False) == greedy(fresh, PROMPT + first + MORE, 8)


def test_eval_after_an_answer_reads_it_again(routed, load):
    used, fresh = load(routed, skip=[1, 4]), load(routed, skip=None)
    found = greedy(used, PROMPT, 10)[:9]
    used.eval(MORE)
    fresh.eval(PROMPT + found + MORE)
    assert used.n_tokens == fresh.n_tokens == 94
    np.testing.assert_allclose(logits(used)[0], logits(fresh)[0], rtol=0, atol=CLOSE)


def test_prefix_reuse_stops_where_layers_were_left_out(routed, load, monkeypatch):
    llm = load(routed, skip=[2])
    answer = greedy(llm, PROMPT, 20)
    evaluated = []
    base_eval = llama_cpp.Llama.eval
    monkeypatch.setattr(llama_cpp.Llama, "eval", lambda self, t: (evaluated.append(list(t)), base_eval(self, t))[1])
    greedy(llm, PROMPT + answer + MORE, 1)
    assert evaluated[0] == answer + MORE  # the prompt is reused, the answer is read in full


def test_reused_prefix_still_counts_in_the_scores(routed, load):
    used, fresh = load(routed, skip=0.5), load(routed, skip=0.5)
    greedy(used, PROMPT, 3)
    greedy(used, PROMPT + MORE, 1)
    greedy(fresh, PROMPT + MORE, 1)
    assert used.routing.prompt_tokens == 85
    np.testing.assert_allclose(used.routing.keep, fresh.routing.keep, rtol=0, atol=1e-5)


def poison(llm, layers, positions):
    """NaN into the K and V rows of `layers` at `positions` (F32 cache, flash attention: one row a position)."""
    for tensor in llm.kv_cache:
        if tensor.layer in layers:
            width = tensor.n_bytes // 4 // llm._ctx.n_ctx()
            rows = np.ctypeslib.as_array((ctypes.c_float * (tensor.n_bytes // 4)).from_address(tensor.address))
            rows = rows.reshape(-1, width)
            assert rows[:60].any(), "the prompt's rows are there"
            assert not rows[positions].any(), "no KV row was written for a layer left out"
            rows[positions] = np.nan


@pytest.mark.parametrize("skip", [0.5, [1, 4], [0], [5]], ids=str)
def test_stale_kv_is_never_read(routed, load, skip):
    context = {"flash_attn": True, "type_k": 0, "type_v": 0}
    used, fresh = load(routed, skip=skip, **context), load(routed, skip=skip, **context)
    answer = greedy(used, PROMPT, 20)
    poison(used, used.routing.skipped, np.arange(60, 79))
    row, second, _ = second_turn(used, PROMPT + answer + MORE)
    fresh_row, fresh_second, _ = second_turn(fresh, PROMPT + answer + MORE)
    assert np.isfinite(row).all()
    assert second == fresh_second
    np.testing.assert_allclose(row, fresh_row, rtol=0, atol=CLOSE)


def test_poison_would_show(routed, load):
    """The test above can fail: told that all rows are whole, the model reads the NaN."""
    llm = load(routed, skip=[1, 4], flash_attn=True, type_k=0, type_v=0)
    answer = greedy(llm, PROMPT, 20)
    poison(llm, (1, 4), np.arange(60, 79))
    llm._read.kv.truncate(0)
    llm._read.kv.append(llm.n_tokens, frozenset())
    with pytest.raises(LogitsError):
        second_turn(llm, PROMPT + answer + MORE)
    assert not np.isfinite(logits(llm)[0]).all()


def test_released_kv_is_read_again(routed, load):
    used, fresh = load(routed, skip=[1, 4], release_kv=True), load(routed, skip=[1, 4])
    answer = greedy(used, PROMPT, 20)
    assert answer == greedy(fresh, PROMPT, 20)
    assert used.routing.kv_bytes_released > 0
    fresh.reset()
    assert second_turn(used, PROMPT + answer + MORE)[1] == second_turn(fresh, PROMPT + answer + MORE)[1]


def test_released_kv_is_no_kv_evaluated_without_those_layers(routed, load):
    used, fresh = load(routed, skip=[0, 5], release_kv=True), load(routed, skip=None)
    greedy(used, PROMPT, 1)
    found = []
    for llm in (used, fresh):
        with llm.skipping([0, 5]):
            found.append(greedy(llm, PROMPT + MORE, 8))
    assert found[0] == found[1]


def test_context_that_is_no_multiple_of_256(routed, load):
    """llama.cpp rounds n_ctx=100 up; tokens beyond the hundredth can be read again too."""
    llm, fresh = load(routed, skip=None, n_ctx=100), load(routed, skip=None, n_ctx=256)
    llm.eval(PROMPT)
    with llm.skipping([2]):
        for token in tokens(60, seed=6):
            llm.eval([token])
    llm.eval(MORE)
    fresh.eval([*PROMPT, *tokens(60, seed=6), *MORE])
    assert llm.n_tokens == fresh.n_tokens == 145
    np.testing.assert_allclose(logits(llm), logits(fresh), rtol=0, atol=CLOSE)


def test_sliding_window_is_read_again_from_the_beginning(routed, load, monkeypatch):
    """Its cache has dropped cells that the prompt's last positions need."""
    llm = load(routed, skip=[1, 4])
    answer = greedy(llm, PROMPT, 20)
    monkeypatch.setattr(llama_cpp, "llama_memory_seq_pos_min", lambda memory, seq: 30)
    _, second, _ = second_turn(llm, PROMPT + answer + MORE)
    assert llm.reused == 0
    monkeypatch.undo()
    assert second == second_turn(load(routed, skip=[1, 4]), PROMPT + answer + MORE)[1]


@pytest.mark.parametrize("skip", [None, [2]], ids=str)
@pytest.mark.parametrize("shared", [60, 690])
def test_what_left_a_sliding_window_is_not_gone_back_to(models, load, monkeypatch, skip, shared):
    """Gemma 3 with a window of 8 and a cache that keeps little more: half of the layers lack the beginning of a long prompt."""
    path = models / "gemma3.gguf"
    write_tiny(path, "gemma3")
    sizes = {"n_ctx": 1024, "n_batch": 16, "n_ubatch": 16, "swa_full": False, "type_k": 0, "type_v": 0}
    used, fresh = (load(path, skip=skip, **sizes) for _ in range(2))
    long = tokens(700, seed=1, n_vocab=N_VOCAB)
    greedy(used, long, 10)
    base_eval = llama_cpp.Llama.eval
    prompt, read = long[:shared] + tokens(20, seed=2, n_vocab=N_VOCAB), []
    for llm in (used, fresh):
        answer = llm.generate(prompt, temp=0.0)
        with monkeypatch.context() as patch:
            patch.setattr(llama_cpp.Llama, "eval", lambda self, t: (read.append(len(t)), base_eval(self, t))[1])
            next(answer)
    assert sum(read) == shared + 20 + (20 if shared == 690 else 80)
    np.testing.assert_allclose(logits(used), logits(fresh), rtol=0, atol=1e-5)
