"""`first-cpp calibrate` as a whole, on tiny models, and what it does when it is stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal

import numpy as np
import pytest
from helpers import tensor_hashes
from routers_files import budget_routers, routed_model

from first_cpp import Llama, load_routers
from first_cpp.calibrate.calibration import Calibration
from first_cpp.calibrate.cost_store import CostStore
from first_cpp.calibrate.findings import Speed, conclude
from first_cpp.calibrate.procedure import SEARCHED, CalibrationError, Plan, Procedure, Show
from first_cpp.calibrate.prompts import Prompt
from first_cpp.calibrate.workers import measuring
from first_cpp.cli.main import main
from first_cpp.gguf.cost_probes import LayerSet
from first_cpp.gguf.embed import write_sidecar
from first_cpp.gguf.routers import Base
from first_cpp.gguf.synthetic import SHAPES, tensor_shapes, write_model, write_random
from first_cpp.skip import fixed_layers
from first_cpp.streams.engine import Engine

IDLE = {1, 4}
"""Layers of the model below that do nothing."""


def idle_tensors(shape):
    rng = np.random.default_rng(3)
    for name, dims in tensor_shapes(shape):
        layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
        if len(dims) == 1:
            yield name, dims, rng.uniform(0.5, 1.5, dims).astype(np.float32)
        elif layer in IDLE and name.endswith(("attn_output.weight", "ffn_down.weight")):
            yield name, dims, np.zeros(dims, np.float32)
        else:
            yield name, dims, rng.normal(0, 0.1, dims).astype(np.float32)


@pytest.fixture(scope="session")
def idle(models):
    path = models / "idle.gguf"
    write_model(path, SHAPES["tiny"], idle_tensors(SHAPES["tiny"]))
    return str(path)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("".join(f"Question {i}: what is {i} times {i * 7 % 11}?\n" for i in range(60)))
    return str(path)


def calibrate(model, prompts, out, *more):
    return main(["calibrate", "-m", model, "--prompts", prompts, "--out", str(out), "-n", "8", "-t", "1", "--quiet", *more])


def test_layers_that_do_nothing_are_found_and_recommended(idle, prompts, tmp_path, load, capsys):
    out = tmp_path / "first.gguf"
    assert calibrate(idle, prompts, out, "--fidelity", "0.9") == 0
    found = Calibration.load(str(tmp_path / "first.calibration.safetensors"))
    assert set(found.order[:2]) == IDLE
    assert found.share == pytest.approx(2 / 6)
    assert found.sets[0].layers == (found.order[0],)
    assert found.weight.shape == (len(found.sets), len(found.read), 128)
    assert found.origin["seconds"] < 60
    assert found.origin["evaluated_tokens"] > 60 * 8  # each level on each answer, if it is not shorter
    routers = load_routers(str(out))
    assert (routers.kind, routers.skip, routers.cost.order) == ("sets", pytest.approx(2 / 6), found.order)
    assert (routers.cost.read, routers.cost.tolerance) == (found.read, pytest.approx(found.tolerance))
    assert len(routers.cost.table) == len(found.table) > 0
    assert tensor_hashes(out) == tensor_hashes(idle)
    llm = load(out)
    llm.create_completion("Hello", max_tokens=4)
    assert set(llm.routing.skipped) >= IDLE  # as many as the prompt can spare
    assert 0 < llm.routing.cost <= found.tolerance * 1.001
    llm.skip = 2 / 6
    llm.create_completion("Hello", max_tokens=4)
    assert set(llm.routing.skipped) == IDLE
    text = capsys.readouterr().out
    assert "At fidelity 0.9 this model skips" in text
    for system in ("dense", "influence", "even", "searched", "budget", "oracle", "recommended"):
        assert f"| {system} " in text
    assert not os.path.exists(tmp_path / "first.calibration.state")
    assert (tmp_path / "first.calibration.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_can_spare_nothing_says_so(tiny, prompts, tmp_path, load, capsys):
    """Every layer of a random model counts: nothing is recommended, and a side file skips nothing."""
    out = tmp_path / "side.gguf"
    assert calibrate(tiny, prompts, out, "--sidecar", "--fidelity", "0.999") == 0
    said = capsys.readouterr()
    assert "This model cannot spare layers at fidelity 0.999" in said.out
    assert "n_ctx" not in said.err  # llama.cpp's warning about a vocabulary without its model
    assert load_routers(str(out)).skip == 0
    assert out.stat().st_size < 1 << 16
    llm = load(tiny, routers=str(out))
    llm.create_completion("Hello", max_tokens=4)
    assert llm.routing.skipped == ()


def test_a_type_that_is_slow_in_batches_is_measured_on_a_copy(models, prompts, tmp_path, monkeypatch):
    """In Q8_0, beside the output, gone afterwards; the speed is the model's own."""
    path = models / "tiny-q5_0.gguf"
    write_random(path, SHAPES["tiny"], "q5_0")
    opened = []

    class Watched(Engine):
        def __init__(self, path, *args, **kwargs):
            opened.append(path)
            super().__init__(path, *args, **kwargs)

    monkeypatch.setattr("first_cpp.streams.engine.Engine", Watched)
    monkeypatch.setattr("first_cpp.calibrate.workers.Engine", Watched)
    assert calibrate(str(path), prompts, tmp_path / "x.gguf") == 0
    copy = str(tmp_path / "x.calibration.gguf")
    assert opened == [copy, str(path)]
    assert not os.path.exists(copy)


def make(engine, tmp_path, plan=None, show=None, name="state"):
    prompts = [Prompt(f"q{i}") for i in range(40)]
    tokens = [engine.tokenize(f"Question {i}: what is it?".encode()) for i in range(40)]
    store = CostStore(str(tmp_path / name), {"of": "this"}, len(prompts))
    plan = plan or Plan(max_tokens=6, search_prompts=12, search_tokens=5, first=4)
    return Procedure(engine, prompts, tokens, 1e-5, store, plan, show or Show())


def carry_out(procedure):
    return procedure.carry_out()


@pytest.fixture
def engine(tiny):
    engine = Engine(tiny, 300, 1, streams=4)
    yield engine
    engine.close()


@pytest.mark.parametrize("when", ["dense answers", "each layer alone", "order of the layers"])
def test_a_stopped_run_goes_on_to_the_same_result(engine, tmp_path, when, monkeypatch):
    whole = carry_out(make(engine, tmp_path, name="whole"))
    calls = []

    def stop(what, done, _total):
        calls.append(what)
        if what == when and done >= 2:
            raise KeyboardInterrupt

    procedure = make(engine, tmp_path, show=Show(bar=stop))
    with pytest.raises(KeyboardInterrupt):
        carry_out(procedure)
    procedure.store.save()
    again = make(engine, tmp_path)
    known = len(again.store.costs)
    assert len(again.store.answered) > 0
    assert known > 0 or when == "dense answers"
    found = carry_out(again)
    assert (found.orders, found.levels) == (whole.orders, whole.levels)
    for kind, costs in whole.costs.items():
        np.testing.assert_allclose(found.costs[kind], costs, rtol=1e-3, atol=1e-5)

    third = make(engine, tmp_path)
    monkeypatch.setattr(engine, "rows", None)  # all is known
    carry_out(third)


def test_groups_have_orders_of_their_own_where_these_are_cheaper(engine, tmp_path, monkeypatch):
    """Whatever is surely cheaper is taken: everything, if nothing has to be shown, and nothing, if too much has."""
    made = make(engine, tmp_path)
    made.prompts = [Prompt(one.text, "ab"[i % 2]) for i, one in enumerate(made.prompts)]
    search = Procedure._search
    own = {"order of group 1": (0, 1, 2, 3, 4, 5), "order of group 2": (1, 2, 3, 4, 5, 0)}
    monkeypatch.setattr(Procedure, "_search", lambda self, *how: own.get(how[2]) or search(self, *how))
    for sure, n_orders in ((-1e9, 3), (1e9, 1)):
        monkeypatch.setattr("first_cpp.calibrate.procedure.SURE", sure)
        found = carry_out(made)
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

    found = carry_out(make(engine, tmp_path, show=Show(stop, said.append)))
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
    found = carry_out(made)
    assert len(found.orders) == 1
    assert len(found.tasks) == (30 if when == "cost of each level" else 40)
    assert seen[-1] == when


def test_time_bounds_what_is_measured(engine, tmp_path):
    plan = Plan(max_tokens=6, search_prompts=12, search_tokens=5, first=4, seconds=1e-6)
    found = carry_out(make(engine, tmp_path, plan))
    assert found.n_answers < 40
    assert found.levels == (1,)
    assert len(found.tasks) == 16


def test_a_state_of_another_run_is_not_used(engine, tmp_path):
    procedure = make(engine, tmp_path)
    procedure.answer()
    other = CostStore(procedure.store.path, {"of": "another"}, 40)
    assert other.stale
    assert not other.answered


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "{tmp}/none/x.gguf"], "does not exist"),
        (["--out", "{model}"], "is the input"),
        (["-m", "{tmp}/no.gguf"], "does not exist"),
        (["--prompts", "{tmp}/no.txt"], "does not exist"),
        (["-m", "{routed}"], "--replace"),
        (["--fidelity", "2"], "0.5 to 0.9999"),
        (["--minutes", "0"], "0.1 or more"),
        (["-t", "2", "--processes", "3"], "--processes is 3, allowed: 1 to 2"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_measured(idle, prompts, tmp_path, more, said, capsys, monkeypatch):
    names = {"tmp": tmp_path, "model": idle, "routed": routed_model(idle, tmp_path)}
    monkeypatch.setattr(Llama, "__init__", None)
    argv = ["calibrate", "-m", idle, "--prompts", prompts, "--out", str(tmp_path / "x.gguf")]
    try:
        code = main([*argv, *(word.format(**names) for word in more)])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_too_few_prompts_are_refused(idle, tmp_path, capsys):
    path = tmp_path / "few.txt"
    path.write_text("one\ntwo\n")
    assert calibrate(idle, str(path), tmp_path / "x.gguf") == 2
    assert "at least 16 are needed" in capsys.readouterr().err


def test_two_processes_find_what_one_does(idle, prompts, tmp_path):
    """Bit for bit: sets, probes, tolerance and table."""
    found = []
    for name, more in (("one", ["-t", "1"]), ("two", ["-t", "2", "--processes", "2"])):
        assert calibrate(idle, prompts, tmp_path / f"{name}.gguf", "--sidecar", *more) == 0
        found.append(Calibration.load(str(tmp_path / f"{name}.calibration.safetensors")))
    one, two = (dataclasses.asdict(calibration) for calibration in found)
    assert len(one["sets"]) > 2
    for name in ("seconds", "command"):
        del one["origin"][name], two["origin"][name]
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def by_workers(tiny, tmp_path, then):
    """A procedure of two workers, with what is to happen as progress is shown."""
    made = []
    with contextlib.ExitStack() as stack:

        def bar(what, done, _total):
            then(what, done, made[0])

        store = CostStore(str(tmp_path / "state"), {"of": "this"}, 40)
        engine, workers = stack.enter_context(measuring(tiny, 300, 2, 4, 2, store))
        procedure = make(engine, tmp_path, show=Show(bar=bar))
        procedure.store = store
        made.append(workers)
        procedure.workers = workers
        procedure.__post_init__()
        return carry_out(procedure), store


def test_a_process_that_dies_ends_the_run(tiny, tmp_path):
    def kill(what, done, workers):
        if what == "order of the layers" and done == 1:
            os.kill(workers._processes[1].pid, signal.SIGKILL)

    with pytest.raises(CalibrationError, match=r"process 2 of 2 ended with code -9; what was measured is in .*state, and the"):
        by_workers(tiny, tmp_path, kill)
    assert multiprocessing.active_children() == []


def test_an_interrupt_with_two_processes_keeps_what_there_is(tiny, tmp_path):
    def stop(what, done, _workers):
        if what == "cost of each level" and done == 20:
            raise KeyboardInterrupt

    found, store = by_workers(tiny, tmp_path, stop)
    assert len(found.tasks) == 20
    assert found.numbers == tuple(sorted(found.numbers))
    again = CostStore(store.path, {"of": "this"}, 40)
    assert len(again.answered) == 40
    assert set(again.costs) == set(store.costs)


def changed_tensors(shape):
    """Those of the idle model after a training: other weights, the same norms."""
    rng = np.random.default_rng(9)
    for name, dims, values in idle_tensors(shape):
        yield name, dims, values if len(dims) == 1 else values + rng.normal(0, 0.03, dims).astype(np.float32)


SETS = (LayerSet(1, (4,)), LayerSet(1, (0,)), LayerSet(2, (2, 4)), LayerSet(3, (1, 2, 5)), LayerSet(3, (1, 2, 4)))
"""That no search would find: not nested, two of some levels."""


@pytest.fixture
def sets_file(idle, tmp_path):
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(0, 0.05, (5, 2, 128)).astype(np.float32), np.full(5, -3.0, np.float32)
    routers = budget_routers(idle, sets=SETS, weight=weight, bias=bias, order=(4, 2, 1, 5, 0, 3))
    write_sidecar(routers, idle, str(tmp_path / "sets.gguf"))
    return str(tmp_path / "sets.gguf")


def test_the_sets_of_a_file_are_kept_and_the_rest_is_fitted_anew(idle, sets_file, prompts, tmp_path, monkeypatch, load, capsys):
    for name in ("search", "own_orders", "_search", "_paced"):
        monkeypatch.setattr(Procedure, name, lambda *_args, name=name: pytest.fail(f"{name}: nothing is searched"))
    asked = set()
    monkeypatch.setattr(CostStore, "save", lambda self: asked.update(layers for _, layers in self.costs))
    merged = str(tmp_path / "merged.gguf")
    write_model(merged, SHAPES["tiny"], changed_tensors(SHAPES["tiny"]))
    found = {}
    for name, model in (("same", idle), ("merged", merged)):
        out = str(tmp_path / f"{name}-first.gguf")
        assert calibrate(model, prompts, out, "--sets", sets_file, "--fidelity", "0.6") == 0, capsys.readouterr().err
        found[name] = load_routers(out)
        assert found[name].cost.sets == SETS
        assert found[name].cost.order == (4, 2, 1, 5, 0, 3)
        assert found[name].train["sets"] == "sets.gguf"
    even = {frozenset(fixed_layers("even", k / 6, 6)) for k in (1, 2, 3)}
    assert asked == {frozenset(), *(frozenset(one.layers) for one in SETS), *even}
    before, same, trained = load_routers(sets_file).cost, found["same"].cost, found["merged"].cost
    assert not np.array_equal(same.bias, before.bias)
    assert same.weight.shape != trained.weight.shape or not np.array_equal(same.weight, trained.weight)
    assert not np.array_equal(same.bias, trained.bias)
    assert same.table != trained.table
    llm = load(merged, routers=str(tmp_path / "merged-first.gguf"), skip="auto", tolerance=1e6)
    llm.create_completion("Hello", max_tokens=3)
    assert llm.routing.skipped in {one.layers for one in SETS[3:]}  # of the largest level
    text = capsys.readouterr().out
    assert "| searched " in text


def test_predictors_of_kept_sets_are_those_of_a_calibration(idle, prompts, tmp_path):
    """What a calibration found, fitted again on the same model, costs and table alike."""
    first, again = (str(tmp_path / f"{name}.gguf") for name in ("first", "again"))
    assert calibrate(idle, prompts, first, "--sidecar") == 0
    assert calibrate(idle, prompts, again, "--sidecar", "--sets", first) == 0
    one, two = load_routers(first).cost, load_routers(again).cost
    assert one.sets == two.sets
    assert [point.kl for point in two.table] == pytest.approx([point.kl for point in one.table], rel=0.1, abs=1e-3)


def test_sets_that_cannot_be_kept_are_refused(idle, tiny, sets_file, prompts, tmp_path, capsys):
    write_sidecar(budget_routers(tiny), tiny, str(tmp_path / "gaps.gguf"))
    for model, sets, said in (
        (tiny, sets_file, "made for another model"),
        (tiny, str(tmp_path / "gaps.gguf"), "has levels 1, 2, 4"),
        (tiny, routed_model(tiny, tmp_path, sidecar=True), "has no sets of layers"),
        (tiny, str(tmp_path / "none.gguf"), "--sets: there is no file"),
    ):
        assert calibrate(model, prompts, tmp_path / "x.gguf", "--sets", sets) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_in_two_minutes(smollm2, tmp_path, capsys):
    """The built-in prompts, as many as the time allows: searched layers cost no more than evenly spaced ones."""
    out = tmp_path / "smollm2.gguf"
    assert main(["calibrate", "-m", smollm2, "--out", str(out), "--sidecar", "--minutes", "2", "--quiet"]) == 0
    found = Calibration.load(str(tmp_path / "smollm2.calibration.safetensors"))
    assert not set(found.order[:3]) & {0, 1, 28, 29}
    lines = capsys.readouterr().out.splitlines()
    table = [line.split("|") for line in lines if line.startswith("|") and " of 30" in line]
    kl = {(cells[1].strip(), cells[2].strip()): float(cells[3]) for cells in table}
    both = [level for level, system in kl if system == "searched" and (level, "even") in kl]
    assert both, table  # how many levels there are depends on the machine's speed
    searched, even = (sum(kl[level, system] for level in both) for system in ("searched", "even"))
    assert searched <= 1.1 * even  # few prompts are kept out in two minutes, and one layer may be the same in both
