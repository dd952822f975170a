"""What an evaluation found: report.json, report.md and the pictures."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from typing import Any

from ..gguf.new_file import new_file
from .answer_file import AnswerFile
from .bootstrap import Interval, Scores, numbers_by_task
from .generated import LEAST_TOKENS, TIMES, measures
from .metrics import metrics_of
from .questions import Question
from .rows import BASE, BUDGET, DENSE, ROUTED, Row

FILES = ("report.md", "report.json", "answers.jsonl", "run.json", "quality.png", "layers.png")
"""Of a report's folder."""

Record = dict[str, Any]
TPOT = "TPOT: mean time per output token after the first.\n"
WIDTH = 80
"""Of a table in a terminal; the overview always fits, unless rows have long names."""


def summarise(
    rows: Sequence[Row],
    questions: Sequence[Question],
    answers: AnswerFile,
    kinds: dict[str, str],
    reference: str,
    n_draws: int,
    seed: int,
) -> Record:
    """Scores, intervals and times of all rows. `reference`: the row that ratios are taken to."""
    tasks = list(dict.fromkeys(question.task for question in questions))
    metrics = {task: metrics_of(kinds[task]) for task in tasks}
    scores = Scores(n_draws, seed)
    found: list[Record] = []
    dense = answers.of(next(row for row in rows if row.name == DENSE), len(questions))
    for row in rows:
        given = answers.of(row, len(questions))
        of_tasks = numbers_by_task(metrics, [q.task for q in questions], given, [q.references for q in questions])
        table: dict[str, dict[str, float]] = {}
        for task, measured in of_tasks.items():
            scores.add(row.name, task, *measured[0])
            table[task] = {metric.name: metric.score(numbers.sum(axis=0), len(numbers)) for metric, numbers in measured}
        beside = _beside_dense(given, dense if row.same_vocabulary else None, tasks)
        found.append({**_facts(row, given, tasks), **beside, "scores": table})
    for one in found:
        one["ratio"] = _interval(scores.ratio(one["row"], reference, tasks))
    return {
        "reference": reference,
        "tasks": {task: sum(q.task == task for q in questions) for task in tasks},
        "rows": found,
        "leads": _leads(rows, {one["row"]: one["share_skipped"] for one in found}, scores, reference, tasks),
        "bootstrap": {"draws": n_draws, "seed": seed, "interval": 0.95},
    }


def _facts(row: Row, given: Sequence[Record], tasks: Sequence[str]) -> Record:
    good = [one for one in given if "error" not in one]
    return {
        "row": row.name,
        "system": row.system,
        "share": row.share,
        "same_vocabulary": row.same_vocabulary,
        "share_skipped": _mean([len(one["skipped_layers"]) / one["n_layer"] for one in good]),
        **_times(good),
        "tokens": sum(one["tokens"] for one in good),
        "cut_off": {task: sum(not one["ended"] for one in good if one["task"] == task) for task in tasks},
        "failed": {one["question"]: one["error"] for one in given if "error" in one},
        "layers": _layer_counts(good),
    }


def _beside_dense(given: Sequence[Record], dense: Sequence[Record] | None, tasks: Sequence[str]) -> Record:
    """What `measures` finds in all answers, and by task. dense: None for a row of another vocabulary."""
    by_task = {}
    for task in tasks:
        here = [i for i, one in enumerate(given) if one["task"] == task]
        by_task[task] = measures([given[i] for i in here], None if dense is None else [dense[i] for i in here])
    return {**measures(given, dense), "by_task": by_task}


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _times(good: Sequence[Record]) -> Record:
    """None where answers were decoded together, of which none has a time of its own, or none has a second token."""
    if any("tpot_ms" not in one for one in good):
        return {"tpot_ms": None, "median_step_ms": None}
    steps = [one["median_step_ms"] for one in good if one["tokens"] > 1]
    return {"tpot_ms": _tpot(good), "median_step_ms": statistics.median(steps) if steps else None}


def _tpot(good: Sequence[Record]) -> float | None:
    """Mean milliseconds per output token after each answer's first; None where no answer has one."""
    steps = sum(max(0, one["tokens"] - 1) for one in good)
    return sum(one["tpot_ms"] * (one["tokens"] - 1) for one in good if one["tokens"]) / steps if steps else None


def _layer_counts(good: Sequence[Record]) -> dict[str, list[float]]:
    """By task, how often each layer was skipped."""
    found = {}
    for task in dict.fromkeys(one["task"] for one in good):
        here = [one for one in good if one["task"] == task]
        n_layer = here[0]["n_layer"]
        found[task] = [sum(layer in one["skipped_layers"] for one in here) / len(here) for layer in range(n_layer)]
    return found


def _leads(
    rows: Sequence[Row], skipped: dict[str, float | None], scores: Scores, reference: str, tasks: Sequence[str]
) -> list[Record]:
    """Rows whose prompts choose against every other that skipped as much, over all tasks and by task.

    A routed row is compared with those that really skipped the same share; a budget, whose mean over prompts comes near it,
    with those that were asked for the same.
    """

    def comparable(row: Row, other: Row) -> bool:
        if row.system == BUDGET:
            return same_share(row.share, other.share)
        return row.system == ROUTED and same_share(skipped[row.name], skipped[other.name])

    found = []
    for row in rows:
        for other in rows:
            if other.system not in (ROUTED, BUDGET, DENSE, BASE) and other.name != reference and comparable(row, other):
                by_task = {task: _interval(scores.lead(row.name, other.name, reference, [task])) for task in tasks}
                lead = _interval(scores.lead(row.name, other.name, reference, tasks))
                found.append({"row": row.system, "share": row.share, "over": other.system, "lead": lead, "by_task": by_task})
    return found


def same_share(one: float | None, other: float | None) -> bool:
    """Whether two rows skipped as many layers; not where one answered nothing."""
    return one is not None and other is not None and abs(one - other) < 1e-6


def _interval(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


def write(record: Record, folder: str) -> None:
    """report.json and report.md in `folder`, each whole or not at all."""
    for name, text in (("report.json", json.dumps(record, indent=1) + "\n"), ("report.md", markdown(record))):
        with new_file(os.path.join(folder, name), "w") as file:
            file.write(text)


def markdown(record: Record) -> str:
    """The tables, their columns aligned as text."""
    parts = [_head(record), *_notes(record), _overview(record), _generated(record), _scores(record)]
    if record["leads"]:
        tasks = list(record["tasks"])
        leads = [
            [f"{one['share']:g}", one["row"], one["over"], _ci(one["lead"]), *(_ci(one["by_task"][task]) for task in tasks)]
            for one in record["leads"]
        ]
        parts.append("## By prompt, above other rows of the share\n")
        parts.append(_tables(["share", "row", "above", "all tasks", *tasks], leads, 3))
    failures = [
        f"- {one['row']}, question {number}: {error}" for one in record["rows"] for number, error in one["failed"].items()
    ]
    if failures:
        parts.append("## Questions that failed; they count as empty answers\n\n" + "\n".join(failures) + "\n")
    return "\n".join(parts)


def _head(record: Record) -> str:
    questions = ", ".join(f"{task} {n}" for task, n in record["tasks"].items())
    return (
        f"# Evaluation\n\n`{record['command']}`\n\n{record['machine']}; first_cpp {record['first_cpp']}, llama-cpp-python "
        f"{record['llama_cpp_python']}.\nGreedy answers. Questions: {questions}.\n"
        f"of reference: score / score of `{record['reference']}` on each task's first metric, mean\n"
        f"over tasks, 95 % interval of a paired bootstrap of {record['bootstrap']['draws']} draws.\n"
        "fidelity: share of positions of the dense model's own answers at which the row's\n"
        "first choice is the token there; KL: to the dense model there, nats per token.\n"
        f"{'' if _untimed(record) else TPOT}"
        "agrees: tokens that the row's greedy answer and the dense one begin with alike, over\n"
        "those of the longer one, mean. loops: share of answers that end in one sequence of\n"
        f"tokens {TIMES} times or more in a row ({LEAST_TOKENS} tokens or more). "
        "cut off: share of answers that\nthe limit of tokens ended, not the model.\n"
    )


def _notes(record: Record) -> list[str]:
    """What some numbers of the tables do not mean."""
    reference = next(one for one in record["rows"] if one["row"] == record["reference"])
    zero = [task for task, scores in reference["scores"].items() if not next(iter(scores.values()))]
    others = [one["row"] for one in record["rows"] if not one.get("same_vocabulary", True)]
    notes = []
    if zero:
        notes.append(f"`{record['reference']}` scores 0 on {', '.join(zero)}, which counts as 0 of reference for every row.\n")
    if others:
        has = "has another vocabulary" if len(others) == 1 else "have other vocabularies"
        notes.append(f"{', '.join(others)} {has}: tokens and distributions are not compared.\n")
    return notes


def _untimed(record: Record) -> bool:
    return all(one["tpot_ms"] is None for one in record["rows"])


def _overview(record: Record) -> str:
    """Fidelity, KL and times only where they were measured."""
    along = ["fidelity", "KL"] if any(one["kl"] is not None for one in record["rows"]) else []
    rows = [
        [
            one["row"],
            _number(one["share_skipped"], ".3f"),
            _ci(one["ratio"]),
            *(_number(one.get(name.lower()), ".3f") for name in along),
            *([] if _untimed(record) else [_number(one["tpot_ms"], ".2f")]),
        ]
        for one in record["rows"]
    ]
    return _table(["row", "skipped", "of reference", *along, *([] if _untimed(record) else ["TPOT ms"])], rows)


def _generated(record: Record) -> str:
    names = {"agrees": "agreement", "loops": "repetition", "cut off": "cut_off_rate"}
    rows = [[one["row"], *(_number(one.get(name), ".3f") for name in names.values())] for one in record["rows"]]
    return _table(["row", *names], rows)


def _scores(record: Record) -> str:
    names = [(task, name) for task, scores in record["rows"][0]["scores"].items() for name in scores]
    rows = [
        [
            one["row"],
            *(f"{one['scores'][task][name]:.1f}" for task, name in names),
            str(len(one["failed"])),
        ]
        for one in record["rows"]
    ]
    return _tables(["row", *(f"{task} {name}".strip() for task, name in names), "failed"], rows, 1)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _ci(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} ({interval[1]:.3f} to {interval[2]:.3f})"


def _tables(columns: Sequence[str], rows: Sequence[Sequence[str]], n_fixed: int) -> str:
    """One table, or as many as it takes to fit WIDTH, each with the first `n_fixed` columns."""
    widths = [max(map(len, cells)) + 3 for cells in zip(columns, *rows, strict=True)]
    fixed, groups = list(range(n_fixed)), list[list[int]]()
    for i in range(n_fixed, len(columns)):
        fits = groups and sum(widths[j] for j in (*fixed, *groups[-1], i)) + 1 <= WIDTH
        groups[-1].append(i) if fits else groups.append([i])
    picked = [[*fixed, *group] for group in groups]
    return "\n".join(_table([columns[i] for i in here], [[row[i] for i in here] for row in rows]) for here in picked)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    shown = [[cell.replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in (columns, *rows)]
    widths = [max(map(len, cells)) for cells in zip(*shown, strict=True)]
    rule = ["-" * width for width in widths]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
        for cells in (shown[0], rule, *shown[1:])
    ]
    return "\n".join(lines) + "\n"


def draw(record: Record, folder: str) -> list[str]:
    """quality.png: score kept by share and, where it was measured, by TPOT. layers.png, where something is routed: how often a
    task skips a layer. Returns their names.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a task may be called $5_$
    import matplotlib.pyplot as plt

    n = 1 if _untimed(record) else 2
    figure, axes = plt.subplots(1, n, figsize=(5.5 * n, 4.2), squeeze=False)
    left, *rights = axes[0]
    for system in dict.fromkeys(one["system"] for one in record["rows"]):
        points = sorted((one for one in record["rows"] if one["system"] == system), key=lambda one: one["share_skipped"] or 0)
        kept = [one["ratio"] for one in points]
        # no draw may reach the value, be it by rounding alone, and matplotlib takes no length below 0
        error = [[max(0, value - low) for value, low, _ in kept], [max(0, high - value) for value, _, high in kept]]
        shares = [(one["share_skipped"] or 0) * 100 for one in points]
        left.errorbar(shares, [value for value, *_ in kept], error, marker="o", capsize=2, label=system)
        for right in rights:
            timed = [one for one in points if one["tpot_ms"] is not None]
            right.plot([one["tpot_ms"] for one in timed], [one["ratio"][0] for one in timed], "o-", label=system)
    left.set(xlabel="skipped layers, %", ylabel=f"score / score of {record['reference']}")
    for right in rights:
        right.set(xlabel="TPOT, ms")
    left.legend(fontsize=7)
    figure.tight_layout()
    _save(figure, folder, "quality.png")

    routed = [one for one in record["rows"] if one["system"] == ROUTED and one["share_skipped"]]
    if not routed:
        return ["quality.png"]
    figure, axes = plt.subplots(len(routed), 1, figsize=(9, 1.2 + 1.1 * len(routed)), squeeze=False)
    for axis, one in zip(axes[:, 0], routed, strict=True):
        axis.imshow(list(one["layers"].values()), aspect="auto", vmin=0, vmax=1, cmap="Blues")
        axis.set_yticks(range(len(one["layers"])), list(one["layers"]))
        axis.set_title(one["row"], fontsize=8)
    axes[-1, 0].set_xlabel("layer; dark: skipped for every prompt")
    figure.tight_layout()
    _save(figure, folder, "layers.png")
    return ["quality.png", "layers.png"]


def _save(figure: Any, folder: str, name: str) -> None:
    import matplotlib.pyplot as plt

    with new_file(os.path.join(folder, name)) as file:
        figure.savefig(file, format="png")
    plt.close(figure)
