"""`--sets`: the sets of a file are kept, predictors and table fitted anew."""

from __future__ import annotations

import numpy as np
import pytest
from calibrating import calibrate, idle_tensors
from routers_files import budget_routers, routed_model

from first_cpp import load_routers
from first_cpp.calibrate.cost_store import CostStore
from first_cpp.calibrate.procedure import Procedure
from first_cpp.gguf.cost_probes import LayerSet
from first_cpp.gguf.embed import write_sidecar
from first_cpp.gguf.synthetic import SHAPES, write_model
from first_cpp.skip import fixed_layers


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


@pytest.mark.slow  # calibrates twice
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
