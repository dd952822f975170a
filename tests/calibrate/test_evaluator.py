"""What skipping costs on a dense answer, against plain decoding, the pruned file and the evaluation's own KL."""

from __future__ import annotations

import math

import llama_cpp
import numpy as np
import pytest
from helpers import logits, tokens

from first_cpp.calibrate.answer_costs import AnswerCosts
from first_cpp.calibrate.first_pass import answer_all, rmsnorm
from first_cpp.calibrate.step_times import LEAST_TURNS, MOST_TURNS, step_times
from first_cpp.gguf.pruned import write_pruned
from first_cpp.runtime.teacher_forcing import log_probabilities
from first_cpp.streams.cost import AGREE, KL, SURPRISE, Targets
from first_cpp.streams.engine import Engine

PROMPTS = [tokens(n, seed=n) for n in (5, 40, 17, 23, 31)]
SETS = [frozenset(s) for s in ({0}, {3}, {5}, {1, 4}, {0, 1, 2, 3}, {0, 2, 5}, {1, 2, 3, 4, 5})]


@pytest.fixture
def engine(tiny):
    engine = Engine(tiny, 300, 1, streams=3)
    yield engine
    engine.close()


def decoded(llm, prompt, answer, skipped):
    """Log probabilities after each token of an answer, decoded token by token after a prompt read by all layers."""
    llm.skip = sorted(skipped) or None
    going = llm.generate(prompt, temp=0.0)
    next(going)
    rows = []
    for token in answer:
        llm.eval([token])
        rows.append(log_probabilities(llm))
    going.close()
    return np.stack(rows)


def expected_cost(dense, skipping):
    kl = (np.exp(dense) * (dense - skipping)).sum(axis=1)
    choice = dense.argmax(axis=1)
    surprise = -skipping[range(len(choice)), choice]
    return [kl.mean(), (skipping.argmax(axis=1) == choice).mean(), surprise.mean()]


@pytest.mark.parametrize("skipped", SETS, ids=lambda s: str(sorted(s)))
def test_cost_is_that_of_plain_decoding(engine, tiny, load, skipped):
    """Token by token through `Llama`, whose prompt reads all layers and whose answer skips."""
    llm, prompt = load(tiny), PROMPTS[1]
    answer = dict(answer_all(engine, [prompt], 12, 1e-5))[0].answer
    expected = expected_cost(decoded(llm, prompt, answer, ()), decoded(llm, prompt, answer, skipped))
    session = AnswerCosts(engine, prompt, answer)
    np.testing.assert_allclose(session.cost(skipped), expected, rtol=2e-3, atol=1e-5)
    assert expected[KL] > 0.01


def test_cost_from_any_base_is_the_same(engine):
    session = AnswerCosts(engine, PROMPTS[1], tokens(12, seed=1))
    plain = {skipped: session.cost(skipped) for skipped in SETS}
    for base in ({3}, {0}, {0, 2}, {1}, {1, 2, 3}):
        for skipped in SETS:
            np.testing.assert_allclose(session.cost(skipped, frozenset(base)), plain[skipped], rtol=2e-3, atol=1e-5)
    for skipped in SETS:
        np.testing.assert_allclose(session.rebase(skipped), plain[skipped], rtol=2e-3, atol=1e-5)


def test_a_model_that_treats_hidden_states_otherwise_is_read_from_its_first_layer(tiny, monkeypatch):
    """Found by trying: here, one that doubles what comes in. Costs are the same, at the price of all layers."""
    given = Engine._states
    monkeypatch.setattr(Engine, "_states", lambda self, states, *args: given(self, 2 * states, *args))
    engine = Engine(tiny, 300, 1, streams=1)
    assert not engine.starts_anywhere
    slow = AnswerCosts(engine, PROMPTS[1], tokens(12, seed=1))
    found = {skipped: slow.cost(skipped, frozenset({1})) for skipped in SETS}
    engine.close()
    monkeypatch.undo()
    engine = Engine(tiny, 300, 1, streams=1)
    assert engine.starts_anywhere
    quick = AnswerCosts(engine, PROMPTS[1], tokens(12, seed=1))
    for skipped, cost in found.items():
        np.testing.assert_allclose(quick.cost(skipped), cost, rtol=2e-3, atol=1e-5)
    engine.close()


def test_an_evaluation_starts_at_any_layer(engine):
    """From hidden states that no layer before it made: they enter that layer, and leave it where it is skipped."""
    prompt, answer = PROMPTS[1], tokens(12, seed=1)
    engine.read_prompt(prompt)
    prefix = engine.saved()
    _, states = engine.rows(answer, len(prompt), read_from=0)
    for first in range(1, 6):
        engine.restore(prefix)
        given = states[first] + 1
        _, after = engine.rows(answer, len(prompt), frozenset(range(first, 5)), (first, given), read_from=first)
        assert len(after) == 7 - first
        for state in after[:-1]:
            np.testing.assert_array_equal(state, given)
        assert np.abs(after[-1] - given).max() > 0.1


def test_cost_is_that_of_the_pruned_file(engine, tiny, models, load):
    """Its prompt is read without the layers too, so the answer is all there is: a prompt of one token, and that is BOS."""
    skipped, answer = frozenset({1, 4}), tokens(14, seed=2)
    path = str(models / "tiny-without-1-4-calibrate.gguf")
    write_pruned(tiny, path, skipped)

    def rows(llm):
        llm.eval([1, *answer])
        found = logits(llm, len(answer) + 1)[1:].astype(np.float64)
        return found - np.log(np.exp(found - found.max(1, keepdims=True)).sum(1, keepdims=True)) - found.max(1, keepdims=True)

    dense = rows(load(tiny, llama_cpp.Llama, logits_all=True))
    expected = expected_cost(dense, rows(load(path, llama_cpp.Llama, logits_all=True)))
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(engine.ctx), True)
    with engine._skipping(skipped):
        engine._decode(engine._tokens([1], [0], [0], [True]))
    prefix = engine.saved()
    found, _ = engine.rows(answer, 1, skipped)
    np.testing.assert_allclose(Targets.of(dense.astype(np.float32)).cost(found), expected, rtol=2e-3, atol=1e-5)
    engine.restore(prefix)
    again, _ = engine.rows(answer, 1, skipped)
    np.testing.assert_array_equal(again, found)


def test_kl_is_that_of_the_evaluation(engine, tiny, load):
    """`first-cpp eval` counts the first token too, which the prompt gives and which costs nothing."""
    from first_cpp.evaluate.asking import DenseAnswer
    from first_cpp.evaluate.questions import Question

    dense, llm = load(tiny), load(tiny, skip=[1, 3])
    wanted = DenseAnswer.of(dense, Question("t", "Why is it so, and not another way?", ("",)), 12)
    n = len(wanted.answer)
    found = AnswerCosts(engine, wanted.prompt, wanted.answer).cost(frozenset({1, 3}))
    assert found[KL] * n / (n + 1) == pytest.approx(wanted.compare(llm)["kl"], rel=2e-3)


def test_answers_are_the_dense_greedy_ones(engine, tiny, load):
    """Several at once, each as `Llama` gives it alone, with what the probes read of each prompt."""
    llm = load(tiny)
    found = dict(answer_all(engine, PROMPTS, 10, 1e-5))
    assert sorted(found) == list(range(len(PROMPTS)))
    for number, one in found.items():
        going = llm.generate(PROMPTS[number], temp=0.0)
        expected = [next(going) for _ in range(10)]
        going.close()
        end = expected.index(2) if 2 in expected else 10
        assert one.answer == expected[:end]
        normed = rmsnorm(llm.hidden_states(PROMPTS[number])[:-1], 1e-5)
        expected_reads = np.concatenate([normed.mean(axis=1), normed[:, -1]])
        np.testing.assert_allclose(one.read, expected_reads, rtol=1e-4, atol=1e-5)


def test_an_answer_that_ends_at_once_is_empty(engine, monkeypatch):
    monkeypatch.setattr(llama_cpp, "llama_vocab_is_eog", lambda _vocabulary, _token: True)
    assert [one.answer for _, one in answer_all(engine, PROMPTS, 10, 1e-5)] == [[]] * len(PROMPTS)


def test_cost_by_the_formulas():
    rng = np.random.default_rng(0)
    dense, other = (rng.normal(0, 3, (7, 500)).astype(np.float32) for _ in range(2))
    p, q = (x - np.log(np.exp(x.astype(np.float64)).sum(1, keepdims=True)) for x in (dense, other))
    found = Targets.of(dense).cost(other)
    np.testing.assert_allclose(found, expected_cost(p, q), rtol=1e-3)
    assert Targets.of(dense).cost(dense)[[KL, AGREE]].tolist() == pytest.approx([0, 1], abs=1e-5)
    rows = np.random.default_rng(1).normal(scale=4, size=(200, 500)).astype(np.float32)
    assert all(Targets.of(row[None]).cost(row[None])[KL] >= 0 for row in rows)  # whatever rounding leaves
    assert found[SURPRISE] > found[KL] > 1


def test_block_influence_of_an_answer(engine, tiny, load):
    prompt, answer = PROMPTS[1], tokens(12, seed=1)
    states = load(tiny).hidden_states(prompt + answer)[:, len(prompt) :].astype(np.float64)
    norms = np.linalg.norm(states, axis=-1)
    expected = (1 - (states[:-1] * states[1:]).sum(-1) / (norms[:-1] * norms[1:])).mean(1)
    np.testing.assert_allclose(AnswerCosts(engine, prompt, answer).influence, expected, rtol=1e-4)


def test_speed_is_measured_often_enough_on_a_short_answer(engine):
    """The first prompt's answer may have two tokens: two steps tell nothing, as when the time is over at once."""
    for until, turns in ((math.inf, MOST_TURNS), (0.0, LEAST_TURNS)):
        found = step_times(engine, PROMPTS[0], [5, 6], [frozenset(), frozenset({3})], until)
        assert [len(times) for times in found] == [turns, turns]
