"""How an answer ends: cancelled, interrupted, at the end of its context; and how long it took."""

from __future__ import annotations

import threading
import time

import pytest
from helpers import greedy, survives, tokens
from routers_files import routed_model

from first_cpp import AnswerCancelled

PROMPT = tokens(40, seed=3)


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=21)


# -- an answer that is cancelled, and one that is timed ------------------------------------------------------------


@pytest.mark.timed
@pytest.mark.parametrize("settings", [{}, {"skip": 0.34}, {"n_batch": 32}], ids=["dense", "routed", "small batches"])
def test_cancel_ends_an_answer_amid_prefill(routed, load, settings):
    llm = load(routed, n_ctx=2048, **settings)
    long = tokens(2000, seed=5)
    start = time.perf_counter()
    greedy(llm, long, 1)
    whole = time.perf_counter() - start
    llm.reset()
    timer = threading.Timer(whole / 4, llm.cancel)
    timer.start()
    start = time.perf_counter()
    with pytest.raises(AnswerCancelled):
        greedy(llm, long, 1)
    assert time.perf_counter() - start < whole * 0.8
    timer.join()
    assert greedy(llm, PROMPT, 12) == greedy(load(routed, n_ctx=2048, **settings), PROMPT, 12)
    assert greedy(llm, long, 4) == greedy(load(routed, n_ctx=2048, **settings), long, 4)


def test_cancel_ends_an_answer_between_two_tokens(routed, load):
    llm = load(routed, skip=0.34)
    llm.cancel()  # nothing to end
    answer = llm.generate(PROMPT, temp=0.0)
    next(answer)
    llm.cancel()
    with pytest.raises(AnswerCancelled):
        next(answer)
    llm.cancel()
    assert greedy(llm, PROMPT, 12) == greedy(load(routed, skip=0.34), PROMPT, 12)


def test_a_suspended_answer_that_is_cancelled_is_in_nobodys_way(routed, load):
    llm = load(routed, skip=0.34)
    answer = llm.generate(PROMPT, temp=0.0)
    next(answer)
    llm.cancel()
    llm.eval([5])
    assert greedy(llm, PROMPT, 12) == greedy(load(routed, skip=0.34), PROMPT, 12)


def test_cancel_reaches_an_answer_in_another_thread(routed, load):
    llm = load(routed, skip=0.34, n_ctx=2048)
    raised = []

    def answer():
        with pytest.raises(AnswerCancelled) as caught:
            llm.create_completion("Once", max_tokens=1900, temperature=0.9)
        raised.append(caught.value)

    thread = threading.Thread(target=answer)
    thread.start()
    while llm.timing is None or llm.timing.n_tokens < 5:
        time.sleep(0.001)
    llm.cancel()
    thread.join(timeout=20)
    assert raised


@pytest.mark.timed
def test_timing_leaves_the_consumers_time_out(tiny, load):
    llm = load(tiny)
    answer = llm.generate(PROMPT, temp=0.0)
    start = time.perf_counter()
    for _ in range(5):
        next(answer)
        time.sleep(0.05)
    answer.close()
    timing = llm.timing
    assert timing.n_tokens == 5
    assert timing.ttft > 0
    assert timing.tpot > 0
    assert timing.ttft + 4 * timing.tpot < time.perf_counter() - start - 0.24


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_where_the_context_does(tiny, load, stream):
    """The base class looks at max_tokens only after whole characters, and fails where the last is cut in two."""
    llm = load(tiny, n_ctx=256)
    lead_byte = 3 + 0xF0  # the first of four bytes, again and again
    asked = {"logit_bias": {lead_byte: 100.0}, "temperature": 0, "stream": stream, "max_tokens": None}
    answer = llm.create_completion([1, 5, 6, 7], **asked)
    assert (list(answer)[-1] if stream else answer)["choices"][0]["finish_reason"] == "length"
    assert llm.timing.n_tokens == 256 - 4 + 1  # the last one takes no place
    assert greedy(llm, PROMPT, 4) == greedy(load(tiny, n_ctx=256), PROMPT, 4)
    with pytest.raises(ValueError, match=r"\(257\) exceed context window of 256"):
        greedy(llm, [1, 5, 6, 7], 254)


def test_tokens_beyond_the_context_are_refused_unchanged(tiny, load):
    llm = load(tiny, n_ctx=256)
    llm.eval(PROMPT)
    for use in (lambda: llm.eval([5] * 256), lambda: next(llm.generate([5] * 257))):
        with pytest.raises(ValueError, match=r"exceed context window of 256"):
            use()
    llm.eval([])
    assert greedy(llm, PROMPT, 4) == greedy(load(tiny, n_ctx=256), PROMPT, 4)


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_an_interrupted_prefill_ends_within_a_micro_batch(routed, load, monkeypatch):
    llm = load(routed, skip=0.34, n_batch=64, n_ubatch=16)
    decode, sizes = llm._ctx.decode, []

    def interrupted(batch):
        sizes.append(batch.n_tokens())
        decode(batch)
        if len(sizes) == 2:
            raise KeyboardInterrupt  # as Python raises it when a call into C returns

    monkeypatch.setattr(llm._ctx, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        greedy(llm, PROMPT * 4, 1)
    monkeypatch.undo()
    assert sizes == [16, 16]
    fresh = load(routed, skip=0.34, n_batch=64, n_ubatch=16)
    assert greedy(llm, PROMPT, 6) == greedy(fresh, PROMPT, 6)
    assert llm.routing == fresh.routing


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_a_real_ctrl_c(routed, when):
    """The signal arrives at any time; the object stays usable and right. In a process of its own."""
    done = survives(f"""
        import os, random, signal, threading, time
        from first_cpp import Llama
        llm, fresh = (Llama({routed!r}, skip=0.34, n_ctx=4096, n_ubatch=32, n_threads=1, verbose=False) for _ in range(2))
        prompt = [5 + i % 300 for i in range(3000 if {when!r} == "prefill" else 20)]
        short = prompt[:25]
        expected = [token for token, _ in zip(fresh.generate(short, temp=0.0), range(6))]
        heard = 0
        for attempt in range(12):
            delay = random.Random(attempt).uniform(0.002, 0.06)
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                for n, _ in enumerate(llm.generate(prompt, temp=0.0)):
                    if n > 800: break
                time.sleep(0.2)
            except KeyboardInterrupt:
                heard += 1
            assert [token for token, _ in zip(llm.generate(short, temp=0.0), range(6))] == expected
        print(heard)
    """)
    assert int(done.stdout) == 12, done.stderr
