"""A procedure on a tiny model: stopped runs, resumed ones, and what bounds the time."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
from calibrating import make

from first_cpp.calibrate import cost_store
from first_cpp.calibrate.cost_store import CostStore
from first_cpp.calibrate.findings import Speed, conclude
from first_cpp.calibrate.procedure import CHEAP, LEAST_PROMPTS, LEAST_TYPICAL, SEARCHED, Plan, Procedure, Show
from first_cpp.calibrate.prompts import Prompt
from first_cpp.gguf.routers import Base
from first_cpp.streams.cost import KL
from first_cpp.streams.engine import Engine


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """What a run finds that nothing stopped."""
    with contextlib.closing(Engine(tiny, 300, 1, streams=4)) as engine:
        return make(engine, tmp_path_factory.mktemp("unbroken")).carry_out()


@pytest.mark.parametrize("when", ["dense answers", "each layer alone", "order of the layers"])
def test_a_stopped_run_goes_on_to_the_same_result(whole, engine, tmp_path, when, monkeypatch):
    calls = []

    def stop(what, done, _total):
        calls.append(what)
        if what == when and done >= 2:
            raise KeyboardInterrupt

    procedure = make(engine, tmp_path, show=Show(bar=stop))
    with pytest.raises(KeyboardInterrupt):
        procedure.carry_out()
    procedure.store.save()
    again = make(engine, tmp_path)
    known = len(again.store.costs)
    assert len(again.store.answered) > 0
    assert known > 0 or when == "dense answers"
    found = again.carry_out()
    assert (found.orders, found.levels) == (whole.orders, whole.levels)
    for kind, costs in whole.costs.items():
        np.testing.assert_allclose(found.costs[kind], costs, rtol=1e-3, atol=1e-5)

    third = make(engine, tmp_path)
    monkeypatch.setattr(engine, "rows", None)  # all is known
    third.carry_out()


def test_where_time_ends_the_search_all_levels_are_measured_nonetheless(engine, tmp_path):
    """The layers that it did not come to follow by what each costs alone."""
    said = []
    made = make(engine, tmp_path, plan=Plan(max_tokens=6, seconds=1e9, search_part=0.0), show=Show(say=said.append))
    found = made.carry_out()
    assert found.levels == (1, 2, 3)
    assert "order of the layers: the time is over; the others follow by what each costs alone" in said
    cost = [made.store.costs[made.plan.search_tokens, frozenset({layer})][made.searched()[:3], KL] for layer in found.orders[0]]
    units = np.maximum(np.sort(cost, axis=0)[:CHEAP].mean(axis=0), LEAST_TYPICAL)  # each prompt counts by what a layer costs it
    assert np.argsort((cost / units).mean(axis=1)).tolist() == list(range(6))


def test_groups_have_orders_of_their_own_where_these_are_cheaper(engine, tmp_path, monkeypatch):
    """Whatever is surely cheaper is taken: everything, if nothing has to be shown, and nothing, if too much has."""
    made = make(engine, tmp_path)
    made.prompts = [Prompt(one.text, "ab"[i % 2]) for i, one in enumerate(made.prompts)]
    search = Procedure._search
    own = {"order of group 1": (0, 1, 2, 3, 4, 5), "order of group 2": (1, 2, 3, 4, 5, 0)}
    monkeypatch.setattr(Procedure, "_search", lambda self, *how: own.get(how[2]) or search(self, *how))
    for sure, n_orders in ((-1e9, 3), (1e9, 1)):
        monkeypatch.setattr("first_cpp.calibrate.procedure.SURE", sure)
        found = made.carry_out()
        assert len(found.orders) == n_orders
        assert set(found.orders[1:]) <= set(own.values())
        kinds = [kind for kind in SEARCHED if kind in found.costs]
        assert len(kinds) == n_orders
        for kind, order in zip(kinds, found.orders, strict=True):
            known = made.store.costs[6, frozenset(order[:2])][list(found.numbers)]
            np.testing.assert_array_equal(found.costs[kind][:, found.levels.index(2)], known)
        speed = Speed(np.ones(7), np.ones(7))
        result = conclude(found, speed, Base("llama", 6, 128, "f" * 64), 1e-5, [True] * 6, 0.95, {})
        assert {one.layers for one in result.calibration.sets} <= {
            tuple(sorted(order[:k])) for order in found.orders for k in range(1, 7)
        }


def test_an_interrupt_among_the_levels_keeps_what_there_is(engine, tmp_path):
    said = []

    def stop(what, done, _total):
        if what == "cost of each level" and done == 20:
            engine.rows = interrupt

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    found = make(engine, tmp_path, show=Show(stop, said.append)).carry_out()
    assert len(found.tasks) == 20
    assert "interrupted: going by the 20 prompts measured so far" in said


@pytest.mark.parametrize("when", ["cost of each level", "order of group 1"])
def test_an_interrupt_late_ends_the_run_with_what_there_is(engine, tmp_path, when):
    """No group is searched after it, and none found before it is lost."""
    made, seen = make(engine, tmp_path), []

    def stop(what, done, _total):
        seen.append(what)
        if (what, done) == ("cost of each level", 30) and when == what:
            engine.rows = interrupt
        elif what == when == "order of group 1":
            interrupt()

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    made.prompts = [Prompt(one.text, "ab"[i % 2]) for i, one in enumerate(made.prompts)]
    made.show = Show(stop)
    found = made.carry_out()
    assert len(found.orders) == 1
    assert len(found.tasks) == (30 if when == "cost of each level" else 40)
    assert seen[-1] == when


def test_time_bounds_what_is_measured(engine, tmp_path):
    plan = Plan(max_tokens=6, search_prompts=12, search_tokens=5, first=4, seconds=1e-6)
    found = make(engine, tmp_path, plan).carry_out()
    assert found.n_answers < 40
    assert found.levels == (1, 2, 3)
    assert len(found.tasks) == 16


def test_time_ends_the_answers_only_once_enough_of_them_can_be_measured_on(engine, tmp_path, monkeypatch):
    """A classifier answers many prompts with a single token, on which nothing can be measured."""
    decoded = cost_store.answer_all

    def short_at_first(engine, prompts, *settings):
        for i, one in decoded(engine, prompts, *settings):
            one.answer = one.answer[: 1 if len(procedure.store.answered) < 40 else None]
            yield i, one

    monkeypatch.setattr(cost_store, "answer_all", short_at_first)
    procedure = make(engine, tmp_path, plan=Plan(max_tokens=6, seconds=1e-9))
    procedure.prompts, procedure.tokens = procedure.prompts * 3, procedure.tokens * 3
    procedure.answer()
    assert LEAST_PROMPTS <= len(procedure.usable()) < len(procedure.store.answered) < 120


def test_a_state_of_another_run_is_not_used(engine, tmp_path):
    procedure = make(engine, tmp_path)
    procedure.answer()
    other = CostStore(procedure.store.path, {"of": "another"}, 40)
    assert other.stale
    assert not other.answered


def test_a_damaged_state_is_not_used(engine, tmp_path):
    procedure = make(engine, tmp_path)
    procedure.answer()
    path = tmp_path / "state"
    path.write_bytes(path.read_bytes()[:100])
    store = CostStore(str(path), {"of": "this"}, 40)
    assert store.stale
    assert not store.answered
    store.save()
    assert not CostStore(str(path), {"of": "this"}, 40).stale


def test_sessions_take_no_more_memory_than_they_may(engine, tmp_path, monkeypatch):
    """The costs are the same, measured by sessions that are not kept."""
    costs = []
    for most, n_kept in ((1 << 30, 6), (0, 0)):
        (tmp_path / str(most)).mkdir()
        procedure = make(engine, tmp_path / str(most))
        procedure.answer()
        monkeypatch.setattr(cost_store, "MOST_HELD", most)
        of, base = procedure.usable()[:6], frozenset({1})
        procedure.measure.base_costs(base, of, 5)
        costs.append(procedure.measure.costs(frozenset({1, 4}), of, 5, base))
        assert len(procedure.measure._sessions) == n_kept
    assert np.array(costs[1]) == pytest.approx(np.array(costs[0]), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("seconds", "pause"), [(0.1, cost_store.SAVE_EVERY), (4.0, 4.0 / cost_store.MOST_SAVING)])
def test_a_state_that_takes_long_to_write_is_written_seldom(tmp_path, monkeypatch, seconds, pause):
    """Of a model of 8B it has hundreds of megabytes."""
    now, saves = [0.0], []
    monkeypatch.setattr(cost_store.time, "monotonic", lambda: now[0])

    def save(*_arguments, **_more):
        saves.append(now[0])
        now[0] += seconds
        return b""

    monkeypatch.setattr(cost_store, "save", save)
    store = CostStore(str(tmp_path / "state"), {}, 1)
    for i in range(2000):
        store.add((8, frozenset([i])), 0, np.zeros(3, np.float32))
        now[0] += 1.0
    pauses = [later - earlier - seconds for earlier, later in itertools.pairwise(saves)]
    assert len(pauses) > 5
    assert all(pause < one < pause + 2 for one in pauses)
