"""The commands that a summary ends with: words that a shell takes, programs that it finds."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig

import pytest

from first_cpp.cli.next_commands import next_commands

CHAT, CONVERT = ["first-cpp", "chat", "-m", "my model.gguf"], ["python", "-m", "convert", "--out", "x"]


def told(*commands):
    head, *lines = next_commands(*commands).splitlines()
    assert head == "next:"
    return [shlex.split(line) for line in lines]


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """An environment that no shell has activated, below the working folder: its scripts stand in .venv/bin."""
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    for name in ("first-cpp", "python"):
        (scripts / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    monkeypatch.setattr(sys, "argv", [str(scripts / "first-cpp"), "demo"])
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(scripts))
    monkeypatch.chdir(tmp_path)
    return scripts


def test_a_program_that_a_shell_finds_goes_by_its_name():
    assert told(CHAT, CONVERT) == [CHAT, CONVERT]


def test_one_that_it_would_not_find_goes_by_its_path(apart, tmp_path, monkeypatch):
    assert told(CHAT, CONVERT) == [[".venv/bin/first-cpp", *CHAT[1:]], [".venv/bin/python", *CONVERT[1:]]]
    monkeypatch.chdir(apart)
    assert told(CHAT)[0][0] == "./first-cpp"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert told(CHAT, CONVERT) == [[str(apart / "first-cpp"), *CHAT[1:]], [str(apart / "python"), *CONVERT[1:]]]


def test_however_it_was_started(apart, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/site-packages/first_cpp/__main__.py", "demo"])
    assert told(CHAT)[0][0] == ".venv/bin/first-cpp"
    (apart / "first-cpp").unlink()
    assert told(CHAT)[0] == [".venv/bin/python", "-m", "first_cpp", *CHAT[1:]]


def test_another_python_is_not_this_one(apart, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "python").touch(mode=0o755)
    assert told(CONVERT)[0][0] == ".venv/bin/python"
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)  # no environment: whatever is called python
    assert told(CONVERT)[0][0] == "python"


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
def test_what_is_printed_runs_in_a_shell_without_the_path():
    code = 'from first_cpp.cli.next_commands import next_commands; print(next_commands(["first-cpp", "--version"]))'
    bare = {**os.environ, "PATH": "/usr/bin:/bin"}
    if any(os.path.exists(f"{folder}/first-cpp") for folder in ("/usr/bin", "/bin")):
        pytest.skip("first-cpp is installed for all")
    printed = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True).stdout
    line = printed.splitlines()[1]
    done = subprocess.run(["sh", "-c", line], env=bare, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("first_cpp "), (line, done.stderr)
