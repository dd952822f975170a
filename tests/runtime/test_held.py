"""The fidelity that is held: by simulation, whatever the prompts are, and by a model."""

from __future__ import annotations

import random

import pytest
from helpers import greedy, tokens
from routers_files import routed_model

from first_cpp import SettingError
from first_cpp.runtime.held import GAIN, HeldFidelity

LEVELS = 15


def simulate(held, costs, seed=0):
    """Fidelities and levels of answers; skipping one more level costs `cost` of an answer's choices, give or take."""
    rng = random.Random(seed)
    found, levels = [], []
    for cost in costs:
        level = held.level(LEVELS)
        measured = 1.0 if level == 0 else min(1.0, max(0.0, 1 - cost * level + rng.gauss(0, 0.03)))
        held.observe(measured)
        found.append(measured)
        levels.append(level)
    return sum(found) / len(found), levels


def bound(n):
    """By which the mean of n answers may be off, in any order."""
    return (1 + GAIN) / (GAIN * n)


ORDERS = {
    "one kind": lambda n: [0.02] * n,
    "mixed": lambda n: random.Random(3).choices([0.005, 0.02, 0.06], k=n),
    "blocks": lambda n: [0.008] * (n // 3) + [0.05] * (n // 3) + [0.02] * (n - 2 * (n // 3)),
    "drift": lambda n: [0.01 + 0.05 * i / n for i in range(n)],
}


@pytest.mark.parametrize("target", [0.9, 0.95, 0.98])
@pytest.mark.parametrize("order", ORDERS)
def test_the_mean_is_the_target(order, target):
    held = HeldFidelity(target)
    mean, levels = simulate(held, ORDERS[order](300))
    assert mean == pytest.approx(target, abs=0.01)
    assert mean == pytest.approx(held.mean)
    assert max(levels) > 0


def test_an_adversary_gains_no_more_than_the_bound():
    """It answers well while much is skipped, badly just after: the order that is worst for the controller."""
    for n in (100, 300, 3000):
        held = HeldFidelity(0.9)
        for _ in range(n):
            held.observe(1.0 if held.dense else (0.0 if held.dial > 0.5 else 0.9))
        assert held.mean >= 0.9 - bound(n)


def test_easy_prompts_stop_at_the_end_of_the_dial():
    held = HeldFidelity(0.9)
    for _ in range(500):
        held.observe(1.0)
    assert held.dial == 1
    held.observe(0.0)  # nothing was wound up meanwhile
    assert held.dial < 0.8


def test_a_target_too_high_goes_dense_and_says_so():
    held = HeldFidelity(1.0)
    mean, levels = simulate(held, [0.02] * 300)
    assert levels[-100:] == [0] * 100
    assert "dense until the mean is back" in held.line()
    held = HeldFidelity(0.999)
    mean, levels = simulate(held, [0.3] * 300)
    assert mean >= 0.999 - bound(300)
    assert levels.count(0) > 290


def test_levels_are_in_the_right_proportion():
    held = HeldFidelity(0.9, dial=0.35)
    drawn = [held.level(10) for _ in range(2000)]
    assert set(drawn) == {3, 4}
    assert sum(drawn) / 2000 == pytest.approx(3.5, abs=0.05)
    again = HeldFidelity(0.9, dial=0.35)
    assert [again.level(10) for _ in range(2000)] == drawn  # seeded


def test_the_state_is_kept_only_where_asked(tmp_path):
    path = tmp_path / "state.json"
    held = HeldFidelity(0.9, path=str(path))
    assert not path.exists()
    held.observe(0.7)
    held.observe(0.9)
    again = HeldFidelity(0.9, path=str(path))
    assert (again.dial, again.answers, again.mean) == (held.dial, 2, pytest.approx(0.8))
    other = HeldFidelity(0.95, path=str(path))
    assert (other.dial, other.answers) == (held.dial, 0)  # the mean of another target says nothing
    wrong = '{"version": 2, "dial": 0.5, "answers": 0, "sum": 0}'
    for text in ("", "[]", "{}", wrong, wrong.replace("0.5", '"x"').replace("2", "1")):
        path.write_text(text)
        with pytest.raises(SettingError, match="is not a fidelity state"):
            HeldFidelity(0.9, path=str(path))


def test_a_state_that_cannot_be_written_is_a_warning(tmp_path):
    held = HeldFidelity(0.9, path=str(tmp_path / "nowhere" / "state.json"))
    with pytest.warns(RuntimeWarning, match="not kept"):
        held.observe(0.9)
    held.observe(0.9)


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=31)


def test_a_model_holds_it(routed, load):
    """A random model agrees with itself rarely: it goes nearly dense, and its mean is on the way to the target."""
    llm = load(routed, fidelity=0.9)
    skipped = []
    for turn in range(60):
        greedy(llm, tokens(20, seed=turn), 12)
        skipped.append(len(llm.routing.skipped))
        before = llm.held.answers
        assert llm.catch_up()
        assert llm.held.answers == before + 1  # once an answer
        assert llm.catch_up()
        assert llm.held.answers == before + 1
    assert llm.held.mean >= 0.9 - bound(60)
    assert 0 < sum(skipped[-30:]) < 30
    assert "fidelity 0.9 is held" in llm.routing.why


def test_prefixes_of_dense_answers_are_reused(routed, load):
    llm = load(routed, fidelity=1.0)
    for turn in range(12):
        greedy(llm, tokens(20, seed=turn), 12)
        llm.catch_up()
    assert llm.routing.skipped == ()
    assert llm._read.n_scored == llm.n_tokens


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fidelity": 0}, "share of positions"),
        ({"fidelity": 1.5}, "share of positions"),
        ({"fidelity": "x"}, "share of positions"),
        ({"fidelity": 0.9, "skip": 0.25}, 'skip="auto"'),
        ({"fidelity": 0.9, "measure": None}, "measure=None"),
        ({"fidelity_state": "x"}, "give fidelity="),
    ],
)
def test_settings_that_contradict_each_other(routed, load, settings, words):
    with pytest.raises(SettingError, match=words):
        load(routed, **settings)


def test_it_needs_routers(tiny, load):
    with pytest.raises(SettingError, match="needs routers"):
        load(tiny, fidelity=0.9)
