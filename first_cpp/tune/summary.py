"""What a user sees at the end of a tuning: the tuned model beside the one that came, and what to do with it."""

from __future__ import annotations

import json
from typing import Any

from ..cli.next_commands import next_commands
from ..runtime.machine import cpu_name
from .job import Job

NAMES = {"base": "the model as it came", "dense": "tuned, nothing skipped", "auto": "tuned, each prompt's own"}


def summary(job: Job) -> str:
    """The table of the report, in a few columns, and the next commands."""
    with open(job.path("report/report.json"), encoding="utf-8") as file:
        report = json.load(file)
    threads = f"{job.threads} thread{'s' * (job.threads > 1)}"
    head = f"Your task, your CPU: {len(job.parts.test)} examples that nothing was trained on ({cpu_name()}, {threads})"
    return "\n".join([head, "", *table(report), "", _ending(job)])


def table(report: dict[str, Any]) -> list[str]:
    """Rows: score of each task by its first metric, share of layers skipped, speed."""
    rows = report["rows"]
    tasks = list(report["tasks"])
    metrics = {task: next(iter(rows[0]["scores"][task])) for task in tasks}
    columns = ["", *(f"{task} {metrics[task]}".strip() for task in tasks), "skipped", "tokens/s"]
    cells = [
        [
            _name(one),
            *(f"{one['scores'][task][metrics[task]]:.1f}" for task in tasks),
            f"{one['share_skipped'] or 0:.0%}",
            f"{1e3 / one['tpot_ms']:.0f}" if one["tpot_ms"] else "",
        ]
        for one in rows
    ]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in [columns, *cells]]


def _name(row: dict[str, Any]) -> str:
    system = row["system"]
    if system in NAMES:
        return NAMES[system]
    return f"tuned, {row['share']:.0%} {'of every prompt' if system == 'routed' else 'on average'}"


def _ending(job: Job) -> str:
    written = f"written: {job.tuned}, report in {job.path('report')}/"
    return f"{written}\n{next_commands(*(['first-cpp', verb, '-m', job.tuned] for verb in ('chat', 'serve')))}"
