"""Checks many architectures, each in a process of its own: llama.cpp ends the process where a model does not suit it."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from .check import Result
from .shapes import NOT_RUN

TIMEOUT = 120  # seconds
_CHECK = (sys.executable, "-m", "architectures.check")


def run(architectures: Iterable[str], processes: int = 2, command: Sequence[str] = _CHECK) -> Iterator[Result]:
    """The results in the order asked, each as soon as it is there. `command` prints the one of the name that follows it."""
    with ThreadPoolExecutor(processes) as pool:
        yield from pool.map(functools.partial(_run_one, command), architectures)


def _run_one(command: Sequence[str], architecture: str) -> Result:
    if why := NOT_RUN.get(architecture):
        return Result(architecture, "not run", why)
    tests = pathlib.Path(__file__).parents[1]
    path = os.pathsep.join([str(tests / "support"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONPATH": path}
    try:
        done = subprocess.run(
            [*command, architecture], cwd=tests, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return Result(architecture, "wrong", f"took more than {TIMEOUT} s")
    if done.returncode == 0:
        return Result(**json.loads(done.stdout.splitlines()[-1]))
    return Result(architecture, "wrong", _last_words(done.stderr) or f"the process ended with status {done.returncode}")


def _last_words(errors: str) -> str:
    """The assertion that ended llama.cpp, or the exception that ended Python."""
    if asserted := re.findall(r"[^/\s]+:\d+: (?:GGML_ASSERT.*|fatal error.*)", errors):
        return asserted[-1]
    lines = errors.strip().splitlines()
    return lines[-1] if lines else ""
