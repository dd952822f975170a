"""The idle pass: what the next turn reads, that nobody waits for it, and what it says skipping cost."""

from __future__ import annotations

import threading
import time

import llama_cpp
import numpy as np
import pytest
from helpers import greedy, logits, tokens
from routers_files import routed_model

from first_cpp import Fidelity, SettingError
from first_cpp.runtime import idle_pass

PROMPT, MORE = tokens(40, seed=3), tokens(12, seed=4)
CLOSE = 2e-3
"""Largest difference of logits between the same tokens read in other batches."""


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=31)


def read_by(llm, prompt):
    """How many tokens a prompt evaluates, and the logits after it."""
    read = []
    evaluate = llm._read.run
    llm._read.run = lambda batch, *rest, **more: (read.append(len(batch)), evaluate(batch, *rest, **more))
    try:
        answer = llm.generate(prompt, temp=0.0)
        next(answer)
        row = logits(llm)[0]
        answer.close()
    finally:
        llm._read.run = evaluate
    return sum(read), row


SETTINGS = {
    "share": {"skip": 0.34},
    "fixed set": {"skip": [1, 3]},
    "released": {"skip": 0.34, "release_kv": True},
    "kept": {"skip": [1, 3], "kv": "keep"},
    "routed prefill": {"skip": 0.34, "prefill": "routed", "route_tokens": 16},
    "small batches": {"skip": 0.34, "n_batch": 32, "n_ubatch": 16},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_next_turn_reads_only_what_is_new(routed, load, settings):
    llm, fresh = load(routed, **settings), load(routed, **settings)
    conversation = PROMPT + greedy(llm, PROMPT, 30)
    assert llm.catch_up()
    n_read, row = read_by(llm, conversation + MORE)
    assert n_read == 1 + len(MORE)  # the answer's last token was never evaluated
    _, expected = read_by(fresh, conversation + MORE)
    np.testing.assert_allclose(row, expected, rtol=0, atol=CLOSE)
    assert llm.routing.skipped == fresh.routing.skipped


def test_without_it_the_answer_is_read_again(routed, load):
    llm = load(routed, skip=0.34)
    conversation = PROMPT + greedy(llm, PROMPT, 30)
    assert read_by(llm, conversation + MORE)[0] == 30 + len(MORE)


def test_a_state_saved_before_and_after(routed, load):
    llm, other = load(routed, skip=0.34), load(routed, skip=0.34)
    conversation = PROMPT + greedy(llm, PROMPT, 30)
    other.load_state(llm.save_state())
    assert other.catch_up()
    assert llm.catch_up()
    llm.load_state(llm.save_state())
    for each in (llm, other):
        n_read, row = read_by(each, conversation + MORE)
        assert n_read == 1 + len(MORE)
        np.testing.assert_allclose(row, read_by(load(routed, skip=0.34), conversation + MORE)[1], rtol=0, atol=CLOSE)


def test_with_drafts(routed, load):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    llm = load(routed, skip=0.34, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4))
    repeated = tokens(8, seed=5) * 4
    answer = greedy(llm, repeated, 24)
    assert llm.catch_up()
    assert llm._read.kv.evaluated_like(frozenset()) == llm.n_tokens
    assert llm.fidelity.positions >= len(answer) - 1 - 4
    row = read_by(llm, repeated + answer + MORE)[1]
    expected = read_by(load(routed, skip=0.34), repeated + answer + MORE)[1]
    np.testing.assert_allclose(row, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("n_tokens", [12, 20, 21, 22])
def test_what_was_drafted_and_not_taken_is_not_measured(tiny, load, n_tokens):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    drafts = LlamaPromptLookupDecoding(num_pred_tokens=10)
    drafted, plain = (load(tiny, skip=[2, 3], measure="kl", draft_model=draft) for draft in (drafts, None))
    for llm in (drafted, plain):
        greedy(llm, tokens(6, seed=1) * 6, n_tokens)
        assert llm.catch_up()
    assert drafted.fidelity.positions == n_tokens - 1
    assert drafted.fidelity.equal == plain.fidelity.equal
    assert drafted.fidelity.kl == pytest.approx(plain.fidelity.kl, rel=1e-3)
    assert drafted.compared_answer() == plain.compared_answer()


def test_nothing_to_do(routed, load):
    llm = load(routed, skip=0.34)
    assert llm.catch_up()
    dense = load(routed, skip=None)
    greedy(dense, PROMPT, 8)
    assert dense.catch_up()
    assert dense.fidelity is None


@pytest.mark.parametrize("parts", [1, 2])
def test_what_was_done_stays(routed, load, parts, monkeypatch):
    monkeypatch.setattr(idle_pass, "PART", 8)
    llm = load(routed, skip=0.34)
    conversation = PROMPT + greedy(llm, PROMPT, 30)
    asked = iter([False] * parts + [True])
    assert not llm.catch_up(lambda: next(asked))
    assert read_by(llm, conversation + MORE)[0] == 30 - 8 * parts + len(MORE)


def test_an_interrupted_pass_loses_no_tokens(routed, load, monkeypatch):
    """What goes on without a new prompt finds the whole text: generate(reset=False), eval, and a saved state."""
    monkeypatch.setattr(idle_pass, "PART", 8)
    expected = load(routed, skip=0.34)
    text = PROMPT + greedy(expected, PROMPT, 30)[:-1]
    for go_on in (
        lambda llm: llm.eval(MORE),
        lambda llm: next(llm.generate(MORE, reset=False, temp=0.0)),
        lambda llm: llm.load_state(llm.save_state()),
    ):
        llm = load(routed, skip=0.34)
        greedy(llm, PROMPT, 30)
        asked = iter([False, True])
        assert not llm.catch_up(lambda asked=asked: next(asked))
        assert llm.n_tokens < len(text)
        go_on(llm)
        assert llm.input_ids[: len(text)].tolist() == text
        assert llm.n_tokens >= len(text)


def test_a_new_message_never_waits(routed, load, monkeypatch):
    """A prompt that arrives amid the pass is answered as by a fresh model, after at most a graph node."""
    monkeypatch.setattr(idle_pass, "PART", 256)
    llm = load(routed, skip=0.34, n_ctx=2048)
    conversation = PROMPT + greedy(llm, PROMPT, 900)
    begun = threading.Event()
    step = llm._idle._step
    monkeypatch.setattr(llm._idle, "_step", lambda: (begun.set(), step())[1])
    done = []
    thread = threading.Thread(target=lambda: done.append(llm.catch_up()))
    thread.start()
    assert begun.wait(10)
    start = time.monotonic()
    with llm._exclusive:
        waited = time.monotonic() - start
    thread.join(10)
    assert done == [False]
    assert waited < 0.2
    answer = greedy(llm, conversation[:200], 6)
    assert answer == greedy(load(routed, skip=0.34, n_ctx=2048), conversation[:200], 6)


@pytest.mark.slow
def test_many_calls_amid_the_pass(routed, load, monkeypatch):
    """No call fails, and none is aborted in place of the pass."""
    monkeypatch.setattr(idle_pass, "PART", 4)
    llm = load(routed, skip=0.34)
    expected = greedy(load(routed, skip=0.34), PROMPT, 12)
    ended = threading.Event()

    def keep_catching_up():
        while not ended.is_set():
            llm.catch_up()

    thread = threading.Thread(target=keep_catching_up)
    thread.start()
    try:
        for _ in range(40):
            assert greedy(llm, PROMPT, 12) == expected
    finally:
        ended.set()
        thread.join(10)


def test_a_suspended_answer_is_left_alone(routed, load):
    llm = load(routed, skip=0.34)
    answer = llm.generate(PROMPT, temp=0.0)
    begun = [next(answer) for _ in range(4)]
    assert not llm.catch_up()
    assert begun + [next(answer) for _ in range(4)] == greedy(load(routed, skip=0.34), PROMPT, 8)


def test_fidelity_is_stocks(routed, load):
    """Token by token with stock llama_cpp on the same answer; KL from its logits and from those that decoding had."""
    llm = load(routed, skip=0.34, measure="kl")
    generator = llm.generate(PROMPT, temp=0.0)
    answer, decoded = [], []
    for _ in range(30):
        answer.append(next(generator))
        decoded.append(logits(llm)[0])
    generator.close()
    assert llm.fidelity is None
    assert llm.catch_up()
    stock = load(routed, cls=llama_cpp.Llama)
    stock.eval(PROMPT)
    equal, kl = 0, []
    for token, had in zip(answer[:-1], decoded[1:], strict=True):
        stock.eval([token])
        dense = log_softmax(logits(stock)[0].astype(np.float64))
        equal += int(dense.argmax() == had.argmax())
        kl.append(np.exp(dense) @ (dense - log_softmax(had.astype(np.float64))))
    assert (llm.fidelity.positions, llm.fidelity.equal) == (29, equal)
    assert 0 < equal < 29
    assert llm.fidelity.kl == pytest.approx(np.mean(kl), abs=1e-3)
    assert llm.fidelity.share == equal / 29


def log_softmax(row):
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def test_measuring_is_a_choice(routed, load):
    llm = load(routed, skip=0.34, measure=None)
    greedy(llm, PROMPT, 12)
    assert llm.catch_up()
    assert llm.fidelity is None
    with pytest.raises(SettingError, match="measure='all'"):
        load(routed, measure="all")
    assert Fidelity(4, 3).share == 0.75


def test_all_logits_are_those_of_the_pass(routed, load):
    llm, fresh = load(routed, skip=[1, 3], logits_all=True), load(routed, skip=[1, 3], logits_all=True)
    conversation = PROMPT + greedy(llm, PROMPT, 30)
    assert llm.catch_up()
    assert llm.fidelity.positions == 29
    for one in (llm, fresh):
        greedy(one, conversation + MORE, 1)
    n = len(conversation) - 1
    np.testing.assert_allclose(llm.scores[:n], fresh.scores[:n], rtol=0, atol=CLOSE)


def test_an_answer_is_not_compared_with_what_was_loaded_in_its_place(tiny, load):
    llm = load(tiny, skip=[2, 3])
    greedy(llm, PROMPT, 20)
    state = llm.save_state()
    greedy(llm, PROMPT[::-1], 20)
    llm.load_state(state)
    assert llm.catch_up()
    assert llm.fidelity is None
    assert llm.compared_answer() == []


def test_an_answer_is_not_compared_with_what_was_read_after_a_reset(tiny, load):
    llm = load(tiny, skip=[2, 3])
    greedy(llm, PROMPT, 20)
    llm.reset()
    with llm.skipping([1]):
        llm.eval(tokens(60, seed=6))
    assert llm.catch_up()
    assert llm.fidelity is None


def test_a_measured_answer_counts_where_a_reset_follows(routed, load):
    llm = load(routed, fidelity=0.9)
    while llm.routing is None or not llm.routing.skipped:
        greedy(llm, PROMPT, 20)
        llm.catch_up()
    answers = llm.held.answers
    greedy(llm, PROMPT, 20)
    llm.catch_up(stop=iter([False, True]).__next__)
    llm.reset()
    assert llm.held.answers == answers + 1
