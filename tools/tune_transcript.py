"""Tunes SmolLM2 on 60 examples of two toy tasks, and writes what came out into README.md and the guide:
python tools/tune_transcript.py"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

from marks import ROOT, fill

from first_cpp.gguf.bundled import find_demo_model

README, GUIDE = (os.path.join(ROOT, *parts) for parts in (("README.md",), ("docs", "guide", "train.md")))
WRITER = "tools/tune_transcript.py"
N = 30
"""Examples of each task."""
NAMES = ["Anna", "Ben", "Carla", "David", "Ella", "Finn", "Greta", "Hugo", "Ida", "Jonas", "Klara", "Leo", "Mia", "Nils"]
CITIES = ["Oslo", "Rome", "Paris", "Lima", "Cairo", "Delhi", "Tokyo", "Madrid", "Vienna", "Prague", "Dublin", "Athens"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
THINGS = ["pen", "book", "lamp", "chair", "cup", "bag", "hat", "clock", "ring", "shirt"]


def toy_examples(seed: int = 1) -> list[dict[str, str]]:
    """Examples of two tasks, shuffled."""
    rng = random.Random(seed)
    found = []
    for _ in range(N):
        one, other = rng.sample(CITIES, 2)
        trip = f"{rng.choice(NAMES)} flew from {one} to {other} on {rng.choice(DAYS)}."
        found.append({"task": "city", "prompt": f"{trip} Which city was left behind?", "response": one})
        a, b = rng.sample(THINGS, 2)
        x, y = rng.sample(range(2, 60), 2)
        costs = f"A {a} costs {x} euros and a {b} costs {y} euros."
        dearer = f"The {a if x > y else b}, {max(x, y)} euros"
        found.append({"task": "price", "prompt": f"{costs} Which of the two is dearer?", "response": dearer})
    rng.shuffle(found)
    return found


def sentence(report: dict[str, object], machine: str, minutes: float) -> str:
    """What the run gained, from its report.

    >>> row = lambda system, x: {"system": system, "scores": {"a": {"F1": x}, "b": {"F1": x + 1}}}
    >>> sentence({"rows": [row("base", 10.2), row("dense", 80.0)]}, "A CPU", 4.2)
    '60 examples of two toy tasks took SmolLM2-135M-Instruct from 10 and 11 to 80 and 81 points (F1), in 4.2 minutes on A CPU.'
    """
    scores = {row["system"]: [next(iter(one.values())) for one in row["scores"].values()] for row in report["rows"]}  # type: ignore[attr-defined]
    before, after = (" and ".join(f"{score:.0f}" for score in scores[name]) for name in ("base", "dense"))
    return (
        f"{2 * N} examples of two toy tasks took SmolLM2-135M-Instruct from {before} to {after} points (F1), "
        f"in {minutes:.1f} minutes on {machine}."
    )


def main(folder: str) -> None:
    shutil.copy(find_demo_model(), os.path.join(folder, "model.gguf"))
    with open(os.path.join(folder, "data.jsonl"), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in toy_examples())
    command = "first-cpp tune data.jsonl -m model.gguf --minutes 0.5"
    started = time.monotonic()
    words = [sys.executable, "-m", "first_cpp", *command.split()[1:]]
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])  # commands are shown by their names
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, "PATH": path})
    minutes = (time.monotonic() - started) / 60
    with open(os.path.join(folder, "tuned", "report", "report.json"), encoding="utf-8") as file:
        report = json.load(file)
    machine = re.search(r"\((.*)\)$", done.stdout.splitlines()[0])[1]  # type: ignore[index]
    fill(README, WRITER, sentence(report, machine, minutes))
    fill(GUIDE, WRITER, f"```\n$ {command}\n{done.stdout.strip()}\n```")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(made)
