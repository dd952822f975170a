"""Answers that end in other ways than by themselves: the next is right."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import greedy, logits, tokens
from routers_files import routed_model
from second_turn import MORE, PROMPT

from first_cpp import BusyError


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=11)


def test_reset_and_load_state_end_an_answer_that_is_suspended(routed, load):
    """Else a later eval would be taken for its decoding, and lose layers."""
    dense = load(routed, skip=None)
    dense.eval(MORE)
    empty = load(routed, skip=None).save_state()
    for end in (lambda llm: llm.reset(), lambda llm: llm.load_state(empty), lambda llm: llm.hidden_states([5, 6])):
        llm = load(routed, skip=[1, 4])
        suspended = llm.generate(PROMPT, temp=0.0)
        next(suspended)
        end(llm)
        llm.eval(MORE)
        np.testing.assert_array_equal(logits(llm), logits(dense))
        with pytest.raises(BusyError):
            next(suspended)


def test_interrupt_right_after_a_decode(routed, load, monkeypatch):
    """Ctrl-C lands after llama_decode: the logits are those of a token that does not count."""
    llm = load(routed, skip=[1, 4])
    generator = llm.generate(PROMPT, temp=0.0)
    next(generator)
    decode = llm._ctx.decode

    def interrupted(batch):
        decode(batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(llm._ctx, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(generator)
    monkeypatch.undo()
    assert greedy(llm, PROMPT, 6) == greedy(load(routed, skip=[1, 4]), PROMPT, 6)


def test_failed_eval_then_the_same_prompt(routed, load, monkeypatch):
    llm = load(routed, skip=[1, 4], n_ctx=256, n_batch=64)
    greedy(llm, PROMPT, 1)
    monkeypatch.setattr(llm, "_n_ctx", 512)  # else eval would see that there is no room
    with pytest.raises(RuntimeError):
        llm.eval(tokens(300))
    monkeypatch.undo()
    assert greedy(llm, PROMPT, 6) == greedy(load(routed, skip=[1, 4]), PROMPT, 6)
