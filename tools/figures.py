"""The figures that documents show, from the files that commands wrote: benchmarks/results, the adapter's card, lab notes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from marks import NOTES, ROOT

CARD = os.path.join(ROOT, "first_cpp", "adapters", "smollm2-135m-instruct", "README.md")
Cells = dict[str, str]
Interval = tuple[float, float, float]


def markdown_rows(path: str, after: str) -> list[Cells]:
    """The rows of the first table after a line that begins with `after`, by column. Raises ValueError without such a line."""
    with open(path, encoding="utf-8") as file:
        lines = iter(file.read().splitlines())
    if not any(line.startswith(after) for line in lines):
        raise ValueError(f"{path} has no line that begins with {after!r}")
    table = list(_first_table(lines))
    names = table[0]
    return [dict(zip(names, row, strict=True)) for row in table[2:]]


def _first_table(lines: Iterator[str]) -> Iterator[list[str]]:
    found = False
    for line in lines:
        if line.startswith("|"):
            found = True
            yield [cell.strip() for cell in line.strip("|").split("|")]
        elif found:
            return


def interval(text: str) -> Interval:
    """A mean with its 95 % interval, as `first-cpp eval` writes it: 0.973 (0.936 to 1.012)."""
    mean, low, high = map(float, re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", text).groups())  # type: ignore[union-attr]
    return mean, low, high


def adapter_rows() -> list[Cells]:
    """What the bundled adapter keeps: the evaluation in its card, dense first, then its routers by share."""
    rows = markdown_rows(CARD, "## Measured")
    return [row for row in rows if row["row"] == "dense" or row["row"].startswith("routed@")]


def four_task_rows() -> dict[str, Cells]:
    """The evaluation on four tasks, by row, from the lab notes."""
    return {row["row"]: row for row in markdown_rows(NOTES, "<!-- written by tools/show_report.py four-tasks -->")}


def measured(name: str) -> bool:
    """Whether benchmarks/results has a file of this name."""
    return os.path.exists(os.path.join(ROOT, "benchmarks", "results", f"{name}.json"))


def results(name: str) -> dict[str, Any]:
    """A file of benchmarks/results: command, machine, rows."""
    with open(os.path.join(ROOT, "benchmarks", "results", f"{name}.json"), encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def bench(name: str, **wanted: object) -> list[dict[str, Any]]:
    """The rows of a file of benchmarks/results that have these values."""
    return [row for row in results(name)["rows"] if all(row[key] == value for key, value in wanted.items())]


def machine() -> str:
    """The machine of the speed figures."""
    return str(results("limit-smollm2")["machine"])
