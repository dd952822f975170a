"""Training by two processes, as `--processes 2` starts them: the same weights, logs and files as by one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import reference
import torch
from safetensors.torch import load_file
from training import Words, examples, trainer

from first_cpp.cli.main import main
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.train.layer_orders import start_orders

pytestmark = pytest.mark.slow

SETTINGS = {
    "even": {"batch_size": 4},
    "uneven": {"batch_size": 5, "accumulate": 2, "part_tokens": 60},
    "one left over": {"batch_size": 3, "average": 0.4},  # the last batch has one example: the second process has none
    "two-step": {"batch_size": 3, "recipe": "two-step", "alpha": 1.0, "router_lr": 0.01},
    "a set found": {"batch_size": 5, "layers": "search"},
}


def start(script, tmp_path, *arguments):
    path = tmp_path / "script.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, str(path), *arguments], env=environment, text=True, cwd=tmp_path, **pipes)


def many(script, tmp_path, *arguments):
    """Exit code, output and errors of a script."""
    with start(script, tmp_path, *arguments) as started:
        out, err = started.communicate(timeout=280)
    return started.returncode, out, err


WEIGHTS = """
import pathlib, sys, torch
from first_cpp.train.launch import is_rank, launch
if not is_rank():
    sys.exit(launch(2, sys.argv[1]))
from training import examples, trainer
from first_cpp.train.layer_orders import start_orders
from test_processes import SETTINGS
folder, found = pathlib.Path(sys.argv[1]), {}
for name, settings in SETTINGS.items():
    run = trainer(folder, name, epochs=0.5, **settings)
    assert run.processes.n == 2
    start_orders(run, None, False)
    losses = run.run(examples(7, seed=70), quiet=True)
    found[name] = [p.detach() for p in run.parameters], losses, run.orders
    equal = run.processes.gathered([[p.detach().tolist() for p in run.parameters]])
    assert equal[0] == equal[1]
if run.processes.is_main:
    torch.save(found, folder / "found.pt")
run.processes.end()
"""


def test_two_processes_learn_what_one_does(tmp_path):
    """Each takes part of a batch, of the validation too; the main one searches."""
    (tmp_path / "many").mkdir()
    script = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n{WEIGHTS}"
    code, _, err = many(script, tmp_path, str(tmp_path / "many"))
    assert code == 0, err
    found = torch.load(tmp_path / "many" / "found.pt", weights_only=True)
    for name, settings in SETTINGS.items():
        one = trainer(tmp_path, name, epochs=0.5, **settings)
        start_orders(one, None, False)
        start = [p.detach().clone() for p in one.parameters]
        losses = one.run(examples(7, seed=70), quiet=True)
        weights, losses_of_two, orders = found[name]
        assert orders == one.orders
        for begun, alone, shared in zip(start, one.parameters, weights, strict=True):
            assert torch.equal(begun, alone) is (name == "a set found")
            torch.testing.assert_close(alone.detach(), shared, rtol=0, atol=1e-5, msg=name)
        for task, by_share in losses.items():
            assert losses_of_two[task] == pytest.approx(by_share, abs=1e-4), name
        logs = [(folder / name / "log.csv").read_text().split() for folder in (tmp_path, tmp_path / "many")]
        for alone, shared in zip(*(map(row, log[1:]) for log in logs), strict=True):
            assert alone == pytest.approx(shared, abs=1e-4)
        assert len((tmp_path / "many" / name / "valid.jsonl").read_text().splitlines()) == 1


def row(line):
    """Step, loss and share of a line of log.csv, without the speed."""
    return [float(value) for value in line.split(",")[:3]]


COMMAND = """
import os, sys
import reference
from training import Words
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.cli.main import main
import first_cpp.train.run_setup as run_setup
run_setup.load_model = lambda _path: (reference.make_model(SHAPES["tiny"], seed=2), Words())
if os.environ.get("RANK") == "1" and "DIES_AT" in os.environ:
    from first_cpp.train.trainer import Trainer
    learn = Trainer._learn
    Trainer._learn = lambda self: os._exit(9) if self.step == int(os.environ["DIES_AT"]) else learn(self)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def train(tmp_path):
    data = tmp_path / "data.jsonl"
    words = ["a", "bb", "ccc", "dddd"]
    lines = [{"prompt": " ".join(words[: 1 + i % 4]), "response": words[i % 4] + " bb"} for i in range(23)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["train", "--model", "./m", "--data", str(data), "--rank", "2", "--batch-size", "5", "--precision", "float32"]
    return [*arguments, "--start", "influence", "--quiet", "--lr", "0.01", "--processes", "2", "--out"]


@pytest.mark.timed
def test_the_command_writes_its_files_once_and_goes_on_after_ctrl_c(tmp_path, train, monkeypatch):
    """Ctrl-C reaches all processes; they stop after the same step, and the resumed run ends as an unbroken one."""
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")

    def load(_path):
        return reference.make_model(SHAPES["tiny"], seed=2), Words()

    monkeypatch.setattr("first_cpp.train.run_setup.load_model", load)
    train = [*train[:-1], "--lr", "0.001", "--out"]  # Adam enlarges what sums differ by, the more the larger its steps
    assert main([*train, whole, "--epochs", "8", "--processes", "1"]) == 0
    with start(COMMAND, tmp_path, *train, broken, "--epochs", "8") as started:
        log = tmp_path / "broken" / "log.csv"
        until = time.monotonic() + 120
        while not (log.exists() and len(log.read_text().splitlines()) > 2):
            assert started.poll() is None, started.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=60)
    assert len(re.findall(r"stopped at step \d+ of 40; the same command with --resume goes on", err)) == 1, err
    assert started.returncode == 130
    code, out, err = many(COMMAND, tmp_path, *train, broken, "--epochs", "8", "--resume")
    assert code == 0, err
    assert out.count("routers.safetensors") == 1
    assert json.loads((tmp_path / "broken" / "train.json").read_text())["processes"] == 2
    adapters = [load_file(os.path.join(run, "adapter", "adapter_model.safetensors")) for run in (whole, broken)]
    for name, weight in adapters[0].items():
        torch.testing.assert_close(weight, adapters[1][name], rtol=0, atol=1e-4)
    logs = [list(map(row, (tmp_path / run / "log.csv").read_text().split()[1:])) for run in ("whole", "broken")]
    for alone, shared in zip(*logs, strict=True):
        assert alone == pytest.approx(shared, abs=1e-4)


def test_a_process_that_dies_ends_the_run(tmp_path, train, monkeypatch):
    monkeypatch.setenv("DIES_AT", "3")
    code, _, err = many(COMMAND, tmp_path, *train, str(tmp_path / "run"), "--epochs", "8")
    assert code == 2
    assert "error: process 1 of 2 (from 0) ended with code 9; what the last checkpoint" in err
    assert (tmp_path / "run" / "checkpoint.pt").exists()  # of its start


def test_bad_data_is_said_once(tmp_path, train):
    (tmp_path / "data.jsonl").write_text("{}\n")
    code, _, err = many(COMMAND, tmp_path, *train, str(tmp_path / "run"))
    assert code == 2
    assert err.count("error:") == 1, err
    assert "data.jsonl:1" in err
