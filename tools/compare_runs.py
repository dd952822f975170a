"""Puts runs of `first-cpp train` and of research/try_ideas.py side by side into research/notes.md.

    python tools/compare_runs.py RUN ... [--part NAME] [--document research/notes.md]

The table goes between the marks of this file's name and NAME. Every number is from a run's train.json, or, where no run was
validated, the training loss from its log.csv; the first run is the one that the others are compared to.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re

from marks import NOTES, fill

LAST = 20
"""Steps whose mean training loss stands for a run that was not validated."""


def read_run(folder: str) -> dict:
    """A run's train.json, and as its loss the mean over the last steps of its log."""
    with open(os.path.join(folder, "train.json"), encoding="utf-8") as file:
        run = json.load(file)
    if not run["valid_loss"]:
        with open(os.path.join(folder, "log.csv"), encoding="utf-8", newline="") as file:
            rows = [float(row["loss"]) for row in csv.DictReader(file) if int(row["step"]) <= run["steps"]][-LAST:]
        run["valid_loss"] = {"mean": {}}
        run["loss"] = sum(rows) / len(rows)
    return run


def program(run: dict) -> str:
    """What a run's command starts: `first-cpp train`, or `python research/try_ideas.py IDEA`."""
    return re.split(r" (?=--)", run["command"])[0]


def options(run: dict) -> list[str]:
    """The options of a run's command, each with its value, the last where it is given twice, without those that name files."""
    words = {word.split()[0]: word for word in re.split(r" (?=--)", run["command"])[1:]}
    return [word for name, word in words.items() if name not in ("--out", "--quiet", "--resume")]


def difference(run: dict, first: dict) -> str:
    """What a run's command has that the first one's has not, and the other way round."""
    mine, base = options(run), options(first)
    names = {word.split()[0] for word in mine}
    other = [] if program(run) == program(first) else [f"`{program(run)}`"]
    added = [f"`{word}`" for word in mine if word not in base]
    ours = [word for word in base if not (other and word.startswith("--orders "))]  # that goes with the idea
    dropped = [f"no `{word}`" for word in ours if word.split()[0] not in names]
    return ", ".join([*other, *added, *dropped]) or "as it is"


def table(runs: list[dict]) -> str:
    shares = list(dict.fromkeys(share for run in runs for share in run["valid_loss"]["mean"]))
    head = ["run", *(f"{float(share):g}" for share in shares), *([] if shares else ["loss"]), "steps", "updates", "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for run in runs:
        mean = run["valid_loss"]["mean"]
        losses = [f"{mean[share]:.3f}" if share in mean else "" for share in shares] or [f"{run['loss']:.3f}"]
        counts = [str(run["steps"]), str(run.get("updates", "")), f"{run['seconds'] / 60:.1f}"]
        cells = [difference(run, runs[0]), *losses, *counts]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--part", default="", metavar="NAME")
    parser.add_argument("--document", default=NOTES)
    args = parser.parse_args()
    runs = [read_run(folder) for folder in args.runs]
    first = runs[0]
    validated = any(run["valid_loss"]["mean"] for run in runs)
    of = "Validation loss (cross entropy of the answer, nats a token, mean over tasks) by skip share"
    if not validated:
        of = f"Training loss (with KL where layers are skipped, nats a token, mean over passes) of the last {LAST} steps"
    text = (
        f"`{first['command']}`\n\n{first['data']}; seed {first['settings']['seed']}; {first['machine']}; torch "
        f"{first['torch']}.\n{of}; minutes of all steps.\n\n{table(runs)}"
    )
    fill(args.document, f"tools/compare_runs.py {args.part}".strip(), text)


if __name__ == "__main__":
    main()
