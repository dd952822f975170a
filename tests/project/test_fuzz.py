"""The fuzzers of tests/fuzz, for a moment each; `make fuzz` runs them for long."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

FUZZ = pathlib.Path(__file__).parents[1] / "fuzz"
ROOT = FUZZ.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert", "policy"])
def test_python_fuzzers(name):
    # a process of its own: what ggml's reader says goes to stderr, and a crash would be the fuzzer's alone
    done = subprocess.run(
        [sys.executable, str(FUZZ / f"fuzz_{name}.py"), "--seconds", "2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(FUZZ)},  # PYTHONSAFEPATH keeps the script's own folder out
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(re.search(r"(\d+) cases", done.stdout)[1]) > 20


@pytest.mark.parametrize("n_cases", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_opening_broken_models(n_cases):
    """Tiny models with changed files: they answer, or an error that the API names; nothing ends the process or hangs."""
    done = subprocess.run(
        [sys.executable, str(FUZZ / "fuzz_open.py"), "--seconds", "60", "--cases", str(n_cases)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(re.search(r"(\d+) cases", done.stdout)[1]) > n_cases - 10


@pytest.mark.slow
def test_every_attack_is_held(tmp_path):
    """Those that docs/internals/faults.md counts; each in a process of its own, or by a server of its own."""
    done = subprocess.run(
        [sys.executable, str(FUZZ.parent / "attacks"), "--engine", "first_cpp", "--out", str(tmp_path / "it.jsonl")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def native() -> pathlib.Path:
    """The libFuzzer targets under AddressSanitizer and UndefinedBehaviorSanitizer."""
    if shutil.which("clang++") is None or shutil.which("cmake") is None:
        pytest.skip("needs clang++ and cmake")
    build = ROOT / "build" / "fuzz"
    options = {
        "CMAKE_CXX_COMPILER": "clang++",
        "CMAKE_BUILD_TYPE": "RelWithDebInfo",
        "FIRST_CPP_EXTENSION": "OFF",
        "FIRST_CPP_FUZZ": "ON",
        "FIRST_CPP_SANITIZE": "address,undefined",
        "Python_EXECUTABLE": sys.executable,
    }
    # a generator other than the one the folder was made with is refused: keep what is there
    subprocess.run(
        ["cmake", "-B", build, *(f"-D{k}={v}" for k, v in options.items())], cwd=ROOT, check=True, capture_output=True
    )
    subprocess.run(["cmake", "--build", build, "--parallel", "2"], check=True, capture_output=True)
    return build / "tests" / "fuzz"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gguf", "patch", "scores"])
def test_native_fuzzers(native, name, tmp_path):
    done = subprocess.run(
        [native / f"fuzz_{name}", "-max_total_time=5", f"-artifact_prefix={tmp_path}/", tmp_path, FUZZ / "seeds" / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
