"""Calibration by several processes finds what one does, and outlives none of them."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal

import numpy as np
import pytest
from calibrating import calibrate, make

from first_cpp.calibrate.calibration import Calibration
from first_cpp.calibrate.cost_store import CostStore
from first_cpp.calibrate.procedure import CalibrationError, Show
from first_cpp.calibrate.workers import measuring


@pytest.mark.slow  # calibrates twice, and starts two processes; those below start two without a whole calibration
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
        return procedure.carry_out(), store


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
