"""The command line: exit codes, one line for an error, what is printed."""

from __future__ import annotations

import re
import subprocess
import sys

import llama_cpp
import pytest
from routers_files import routed_model

from first_cpp import Llama
from first_cpp.cli.main import VERBS, main
from first_cpp.runtime.routing import picture


def test_version_names_everything(capsys):
    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["first_cpp", "llama-cpp-python", "libllama", "ggml"]
    assert lines[1].endswith(llama_cpp.__version__)
    assert "libllama" in lines[2].split()[-1].rsplit("/", 1)[-1]


def test_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "first_cpp", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("first_cpp ")


def test_inspect_prints_the_routers(tiny, tmp_path, capsys):
    path = routed_model(
        tiny, tmp_path, skippable="[false, true, true, true, true, false]", **{"train.data": "a, b", "train.command": "c d"}
    )
    assert main(["inspect", path]) == 0
    out = capsys.readouterr().out
    for said in (
        "6 layers x 128",
        "linear",
        "llama, fingerprint",
        "skip=0.34",
        "0, 5",
        "first_cpp 0.1.0",
        "train.data   a, b",
        "train.command c d",
    ):
        assert said in out


def test_inspect_says_what_makes_routers_where_there_are_none(tiny, capsys):
    assert main(["inspect", tiny]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tiny}: no routers\nnext:\n")
    assert out.endswith(f" calibrate -m {tiny} --out tiny-first.gguf\n")


@pytest.mark.parametrize("arguments", [["inspect", "none.gguf"], []])
def test_bad_input_is_one_line_and_exit_code_2(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_unknown_verb_and_debug(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["inspekt"])
    assert stop.value.code == 2
    assert main(["inspect", "--debug", "none.gguf"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_without_a_verb_all_are_listed(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [word for word in re.findall(r"^    (\w+)", shown.err, re.MULTILINE) if word in VERBS] == list(VERBS)
    assert shown.err.endswith("\nerror: a verb is missing\n")


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert verb in capsys.readouterr().out


def test_picture():
    assert picture((1, 2), 5) == "#..##"


def test_inspect_shows_what_can_be_skipped(tiny, capsys, monkeypatch):
    assert main(["inspect", "--check", tiny]) == 0
    assert "skippable    0-5 (6 of 6 layers)" in capsys.readouterr().out
    trouble = ("", "", "its KV", "", "its KV", "its KV")
    monkeypatch.setattr(Llama, "unskippable", trouble)
    assert main(["inspect", "--check", tiny]) == 0
    assert capsys.readouterr().out.splitlines()[1:3] == ["skippable    0-1, 3 (3 of 6 layers)", "not          2, 4-5: its KV"]
    monkeypatch.setattr(Llama, "dense_because", "it has no KV cache")
    assert main(["inspect", "--check", tiny]) == 1
    assert "no layer can be skipped, it would run dense: it has no KV cache" in capsys.readouterr().err
