"""The idle pass in a thread of its own: it ends at once when asked, and what it did stays."""

from __future__ import annotations

import threading
import time

import pytest
from helpers import greedy, tokens
from routers_files import routed_model

from first_cpp.errors import RoutingError
from first_cpp.runtime import idle_pass
from first_cpp.runtime.idle_thread import IdleThread

PROMPT = tokens(40, seed=3)


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=31)


def test_it_reads_all_and_measures(routed, load):
    llm = load(routed, skip=0.34)
    greedy(llm, PROMPT, 30)
    idle = IdleThread(llm)
    idle.begin()
    assert idle.wait(20)
    assert llm.fidelity.positions == 29
    idle.pause()
    assert idle.error is None


@pytest.mark.timed
def test_a_pause_ends_it_within_a_part(routed, load, monkeypatch):
    """Whenever the pause comes, it does not wait for the rest, and a later pass reads only what is left."""
    monkeypatch.setattr(idle_pass, "PART", 256)
    llm = load(routed, skip=0.34, n_ctx=2048)
    greedy(llm, PROMPT, 900)
    idle = IdleThread(llm)
    begun = threading.Event()
    step = llm._idle._step
    monkeypatch.setattr(llm._idle, "_step", lambda: (begun.set(), step())[1])
    idle.begin()
    assert begun.wait(10)
    start = time.monotonic()
    idle.pause()
    assert time.monotonic() - start < 0.2
    assert llm.fidelity is None or llm.fidelity.positions < 899
    idle.begin()
    assert idle.wait(30)
    assert llm.fidelity.positions == 899


def test_cancel_ends_the_pass_and_concerns_no_later_answer(routed, load, monkeypatch):
    monkeypatch.setattr(idle_pass, "PART", 4)
    llm = load(routed, skip=0.34)
    expected = greedy(load(routed, skip=0.34), PROMPT, 12)
    idle = IdleThread(llm)
    for _ in range(30):
        assert greedy(llm, PROMPT, 12) == expected
        idle.begin()
        idle.pause()
    assert idle.error is None


def test_a_model_that_cannot_is_no_failure(routed, load, monkeypatch):
    llm = load(routed, skip=0.34)

    def refuse():
        raise RoutingError("images would have to be read again")

    monkeypatch.setattr(llm, "catch_up", refuse)
    idle = IdleThread(llm)
    idle.begin()
    assert idle.wait(5)
    assert isinstance(idle.error, RoutingError)


def test_compared_answer_is_the_answer(routed, load):
    llm = load(routed, skip=0.34)
    assert llm.compared_answer() == []
    answer = greedy(llm, PROMPT, 30)
    llm.catch_up()
    compared = llm.compared_answer()
    assert [one.token for one in compared] == answer
    assert [one.position for one in compared] == list(range(40, 70))
    differing = {one.position - 1: one.dense for one in compared if one.dense is not None}
    assert differing == {at: dense for at, (_, dense) in llm._measure.differing.items()}
    assert len(differing) == llm.fidelity.positions - llm.fidelity.equal > 0
