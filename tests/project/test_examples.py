"""Each script in examples/ runs as a user would start it, on a tiny random model and on the demo model."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
# what the tiny model of six layers is asked for in place of layers 14 and 15
LAYERS = {"server_client": ("1", "3")}
SHOWN = {
    "chat": r"skipped: \(2, 3\)",
    "asynchronous": r"-- (cancelled; the model is ready|it ended before it was cancelled)",
    "server_client": r"skipped: \[1, 3\]",
    "own_routers": r"skipped \(\d\,\) \(lowest keep scores, share 0.2 asks for 1 of 6 layers\)",
    "fixed_layers": r"skipped \(1,\): TPOT",
}


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tried_and_listed():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == set(SHOWN)
    assert set(re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text())) == names


WAITS = "server_client"  # for a server that it starts, for seconds
ON_TINY = [pytest.param(name, marks=pytest.mark.slow) if name == WAITS else name for name in SHOWN]


@pytest.mark.parametrize("name", ON_TINY)
def test_an_example_runs_on_a_tiny_model(name, tiny):
    assert re.search(SHOWN[name], run(name, tiny, *LAYERS.get(name, ())))


@pytest.mark.slow  # loads SmolLM2 for each
@pytest.mark.smollm2
@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs_on_the_demo_model(name, smollm2):
    assert ("-- cancelled" if name == "asynchronous" else "skipped") in run(name)
