"""Every verb in every kind of surroundings: streams that are closed, full or of other encodings; folders that are not there.

A verb works, or ends with one line on stderr and its exit code; it never shows a traceback and never hangs.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from routers_files import routed_model

PYTHON = f"{sys.executable} -m first_cpp"


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=91)


VERBS = {
    "run": "run -m {model} -n 4 --temp 0 -c 256 --chat-format chatml Hello",
    "run json": "run -m {model} -n 4 --temp 0 -c 256 --raw --json Hello",
    "chat": "chat -m {model} -n 4 --temp 0 -c 256 --chat-format chatml",
    "inspect": "inspect --check {model}",
    "completion": "completion bash",
    "version": "--version",
    "help": "run --help",
}
READS_STDIN = {"run", "run json", "chat"}
# name: the shell's words around a command, and the exit codes that it may end with
SURROUNDINGS = {
    "as usual": ("echo Hello | {command}", {0}),
    "stdin closed": ("{command} <&-", {0}),
    "stdin is a folder": ("{command} </", {0, 1, 2}),
    "stdout closed": ("{command} >&-", {0, 1}),
    "stderr closed": ("echo Hello | {command} 2>&-", {0}),
    "all closed": ("{command} <&- >&- 2>&-", {0, 1}),
    "stdout full": ("echo Hello | {command} >/dev/full", {0, 1}),
    "reader gone": ("echo Hello | {command} | true", {0}),
    "ascii": ("echo Hello | PYTHONIOENCODING=ascii {command}", {0}),
    "cp1252": ("echo Hello | PYTHONIOENCODING=cp1252 {command}", {0}),
    "cp932": ("echo Hello | PYTHONIOENCODING=cp932 {command}", {0}),
    "C locale": ("echo Hello | LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {command}", {0}),
    "no home": ("echo Hello | env -u HOME -u XDG_STATE_HOME {command}", {0}),
    "home is not a folder": ("echo Hello | HOME=/dev/null XDG_STATE_HOME=/dev/null/x {command}", {0}),
    "home cannot be written": ("echo Hello | HOME=/proc XDG_STATE_HOME=/proc {command}", {0}),
    "no temporary folder": ("echo Hello | TMPDIR=/nowhere {command}", {0}),
    "folder removed": ("mkdir gone && cd gone && rmdir ../gone && echo Hello | {command}", {0}),
    "few open files": ("ulimit -n 40; echo Hello | {command}", {0}),
    "no environment": ("echo Hello | env -i {command}", {0}),
    "dumb terminal": ("echo Hello | TERM=dumb COLUMNS=1 {command}", {0}),
}


@pytest.mark.slow  # 140 processes
@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("verb", VERBS)
def test_surroundings(routed, tmp_path, verb, name):
    check(routed, tmp_path, verb, name)


@pytest.mark.parametrize(
    ("verb", "name"),
    [("run", "stdout closed"), ("chat", "ascii"), ("run", "stdout full"), ("chat", "stdin closed"), ("run", "folder removed")],
)
def test_some_of_the_surroundings(routed, tmp_path, verb, name):
    check(routed, tmp_path, verb, name)


def check(model, folder, verb, name):
    line, codes = SURROUNDINGS[name]
    command = line.format(command=f"{PYTHON} {VERBS[verb].format(model=model)}")
    if verb in READS_STDIN and name == "stdin is a folder":
        codes = {1, 2} if verb == "chat" or verb.startswith("run") else codes
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"] if name != "reader gone" else ["bash", "-c", command],
        cwd=folder, capture_output=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    errors = done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in errors, errors
    assert "Exception ignored" not in errors, errors
    assert done.returncode in codes, (done.returncode, errors)
    if done.returncode == 0 and "&-" not in line and "/dev/full" not in line and name != "reader gone":
        assert done.stdout.strip()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to become another user")
def test_another_user_who_may_write_nothing(routed, tmp_path):
    code = (
        "import os, sys; from first_cpp.cli.main import main, setup_arg_parser; setup_arg_parser(); import first_cpp.cli.run; "
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        "sys.exit(main(['run', '-m', '/proc/self/fd/FD', '--raw', '-n', '2', '-c', '256', 'Hello']))"
    )
    with open(routed, "rb") as model:
        done = subprocess.run(
            [sys.executable, "-c", code.replace("FD", str(model.fileno()))],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, pass_fds=[model.fileno()], cwd="/",
        )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 1, 2)
