"""What a verb is to write is a file, or in a folder: a pipe, a device, another kind of thing there is named and left alone."""

from __future__ import annotations

import os
import stat
import time

import pytest
from routers_files import random_routers, routed_model

from convert.__main__ import main as convert
from first_cpp import Llama
from first_cpp.cli.main import main
from first_cpp.gguf.new_file import OutputError


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=82)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"task": "t", "prompt": "p", "response": "r"}\n')
    return str(path)


def pipe(path) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.mkfifo(path)
    return str(path)


COMMANDS = {
    "convert": lambda model, data, out: convert(
        ["--routers", random_routers(data + ".safetensors"), "--model", model, "--out", out, "--force"]
    ),
    "calibrate": lambda model, data, out: main(["calibrate", "-m", model, "--out", out, "--force"]),
    "bench": lambda model, data, out: main(["bench", "-m", model, "-n", "1", "--plot", out]),
    "eval": lambda model, data, out: main(["eval", "--model", model, "--data", data, "--out", out]),
    "train": lambda model, data, out: main(["train", "--model", model, "--data", data, "--out", out]),
    "fidelity state": lambda model, data, out: main(
        ["chat", "-m", model, "-c", "256", "--fidelity", "0.9", "--fidelity-state", out]
    ),
}


@pytest.mark.timed
@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_is_neither_waited_for_nor_replaced(routed, tiny, data, tmp_path, capsys, name):
    model = routed if name in ("eval", "fidelity state") else tiny
    out, started = pipe(tmp_path / "out" / "it.gguf"), time.monotonic()
    assert COMMANDS[name](model, data, out) == 2
    assert time.monotonic() - started < 10
    assert "is a pipe, no " in capsys.readouterr().err
    assert stat.S_ISFIFO(os.stat(out).st_mode)
    assert os.listdir(tmp_path / "out") == ["it.gguf"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_device_is_not_replaced(routed, tiny, data, capsys, name):
    before = os.stat("/dev/null")
    assert COMMANDS[name](routed if name in ("eval", "fidelity state") else tiny, data, "/dev/null") == 2
    assert "/dev/null is a device, no " in capsys.readouterr().err
    assert os.stat("/dev/null").st_rdev == before.st_rdev


@pytest.mark.parametrize(("name", "inside"), [("eval", "answers.jsonl"), ("eval", "quality.png"), ("train", "log.csv")])
def test_pipes_in_a_folder_of_outputs(tiny, data, tmp_path, capsys, name, inside):
    pipe(tmp_path / "out" / inside)
    assert COMMANDS[name](tiny, data, str(tmp_path / "out")) == 2
    assert f"{inside} is a pipe, no regular file" in capsys.readouterr().err


def test_a_fidelity_state_is_a_regular_file(routed, tmp_path):
    path = pipe(tmp_path / "state" / "it")
    with pytest.raises(OutputError, match="is a pipe, no regular file"):
        Llama(routed, n_ctx=64, verbose=False, fidelity=0.9, fidelity_state=path)
