"""The scripts of benchmarks/ that go on where they stopped, and what their page says of figures."""

from __future__ import annotations

import inspect
import itertools
import json
import sys

import calibration
import pytest
import what_else
import what_else_page

from first_cpp.calibrate.procedure import Procedure


@pytest.fixture
def measured(monkeypatch):
    """what_else.py without models: the names of the parts that were measured, in order."""
    names = []

    def part(kind):
        return lambda *given: names.append((kind, *given[:2])) or [{"part": [kind, *map(str, given[:2])]}]

    for name, kind in (("decoding", "decode"), ("steps", "step"), ("texts", "text")):
        monkeypatch.setattr(what_else, name, part(kind))
    return names


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["benchmarks/what_else.py", *map(str, args)])
    what_else.main()


def test_what_else_goes_on_where_it_stopped(measured, monkeypatch, tmp_path, capsys):
    out = tmp_path / "what_else.json"
    clock = itertools.count()
    monkeypatch.setattr(what_else.time, "monotonic", lambda: next(clock))
    with pytest.raises(SystemExit, match=r"stopped after 0\.1 minutes with 6 parts measured; run it again to go on"):
        run(monkeypatch, "--stop-after", 0.1, "--out", out)
    assert not out.exists()
    run(monkeypatch, "--out", out)
    assert len(measured) == len(set(measured)) + 2 * 2 * 7  # each part once; three rounds of the types
    found = json.loads(out.read_text())
    assert found["command"] == "python benchmarks/what_else.py"
    assert [len(found["rows"][kind]) for kind in ("decode", "step", "text")] == [42, 4, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["what_else.json"]
    run(monkeypatch, "--out", out)  # a whole run begins anew
    assert len(measured) == 2 * 48


def test_the_verdict_is_that_of_the_figures(monkeypatch):
    def file(speeds):
        sizes = {"q8_0": 8.0, "q4_k_m": 4.0, "q2_k": 2.0}
        rows = [
            {
                **{"shape": shape, "type": kind, "n_threads": threads, "dense_bytes": sizes[kind]},
                **{"skipping_bytes": 0.8 * sizes[kind], "dense_ms": 1 / speeds[kind], "skipping_ms": 1.0, "speedup": 1.24},
            }
            for shape in what_else_page.SHAPES
            for kind in sizes
            for threads in what_else_page.THREADS
        ]
        return lambda name: {"rows": {"decode": rows}}

    monkeypatch.setattr(what_else_page, "results", file({"q8_0": 1.0, "q4_k_m": 2.0, "q2_k": 2.2}))
    assert what_else_page.verdict().splitlines() == [
        "- Fewer bits, from 8 to 4 (Q8_0 to Q4_K_M): **all of it**, 100 to 100 % of what reading fewer bytes promises.",
        "- Fewer bits still, from 4 to 2 (Q4_K_M to Q2_K): **little of it**, 10 to 10 % of what reading fewer bytes promises.",
        "- Fewer layers, a quarter skipped: **all of it**, 96 to 96 % of what reading fewer bytes promises.",
    ]
    monkeypatch.setattr(what_else_page, "results", file({"q8_0": 1.0, "q4_k_m": 1.4, "q2_k": 2.4}))
    verdicts = what_else_page.verdict()
    assert "8 to 4 (Q8_0 to Q4_K_M): **little of it**, 40" in verdicts
    assert "4 to 2 (Q4_K_M to Q2_K): **part of it**, 71" in verdicts


def test_a_benchmarks_own_steps_are_called_as_calibrates_are():
    own = [name for name, value in vars(calibration.AllKeptOut).items() if inspect.isfunction(value)]
    assert {"sets", "kept_out", "searched"} <= set(own)
    for name in own:
        if name in vars(Procedure):
            mine, theirs = (list(inspect.signature(getattr(of, name)).parameters) for of in (calibration.AllKeptOut, Procedure))
            assert mine == theirs, name
