"""What an evaluation found: report.json, report.md and the pictures."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from typing import Any

from .answers import Answers
from .bootstrap import Interval, Scores, numbers_by_task
from .metrics import metrics_of
from .questions import Question
from .rows import Row

Record = dict[str, Any]


def summarise(
    rows: Sequence[Row],
    questions: Sequence[Question],
    answers: Answers,
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
    for row in rows:
        given = answers.of(row, len(questions))
        of_tasks = numbers_by_task(
            metrics, [q.task for q in questions], [one["text"] for one in given], [q.references for q in questions]
        )
        table: dict[str, dict[str, float]] = {}
        for task, measured in of_tasks.items():
            scores.add(row.name, task, *measured[0])
            table[task] = {metric.name: metric.score(numbers.sum(axis=0), len(numbers)) for metric, numbers in measured}
        found.append({**_facts(row, given, tasks), "scores": table})
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
    kl = [one["kl"] for one in good if "kl" in one]
    return {
        "row": row.name,
        "system": row.system,
        "share": row.share,
        "share_skipped": statistics.mean(len(one["skipped"]) / one["n_layer"] for one in good) if good else None,
        "tpot_ms": statistics.median([one["tpot"] * 1e3 for one in good if one["tpot"]] or [0.0]),
        "tokens": sum(one["n_tokens"] for one in good),
        "kl": statistics.mean(kl) if kl else None,
        "cut_off": {task: sum(not one["ended"] for one in good if one["task"] == task) for task in tasks},
        "failed": {one["question"]: one["error"] for one in given if "error" in one},
        "layers": _layer_counts(good),
    }


def _layer_counts(good: Sequence[Record]) -> dict[str, list[float]]:
    """By task, how often each layer was left out."""
    found = {}
    for task in dict.fromkeys(one["task"] for one in good):
        here = [one for one in good if one["task"] == task]
        n_layer = here[0]["n_layer"]
        found[task] = [sum(layer in one["skipped"] for one in here) / len(here) for layer in range(n_layer)]
    return found


def _leads(
    rows: Sequence[Row], skipped: dict[str, float | None], scores: Scores, reference: str, tasks: Sequence[str]
) -> list[Record]:
    """The routed row against every baseline that really skipped the same share, over all tasks and by task."""
    found = []
    for row in rows:
        for other in rows:
            if (
                row.system == "routed"
                and other.system not in ("routed", "dense")
                and other.name != reference
                and same_share(skipped[row.name], skipped[other.name])
            ):
                by_task = {task: _interval(scores.lead(row.name, other.name, reference, [task])) for task in tasks}
                lead = _interval(scores.lead(row.name, other.name, reference, tasks))
                found.append({"share": row.share, "over": other.system, "lead": lead, "by_task": by_task})
    return found


def same_share(one: float | None, other: float | None) -> bool:
    """Whether two rows skipped as many layers; not where one answered nothing."""
    return one is not None and other is not None and abs(one - other) < 1e-6


def _interval(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


def write(record: Record, folder: str) -> None:
    """report.json and report.md in `folder`, each whole or not at all."""
    for name, text in (("report.json", json.dumps(record, indent=1) + "\n"), ("report.md", markdown(record))):
        path = os.path.join(folder, name)
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{path}.part", path)


def markdown(record: Record) -> str:
    """The tables."""
    names = {task: list(scores) for task, scores in record["rows"][0]["scores"].items()}
    columns = [
        "row",
        "skipped",
        "of reference",
        *(f"{task} {name}" for task, all_ in names.items() for name in all_),
        "KL",
        "TPOT ms",
        "cut off",
        "failed",
    ]
    rows = []
    for one in record["rows"]:
        cells = [one["row"], "" if one["share_skipped"] is None else f"{one['share_skipped']:.3f}", _ci(one["ratio"])]
        cells += [f"{one['scores'][task][name]:.1f}" for task, all_ in names.items() for name in all_]
        cells += ["" if one["kl"] is None else f"{one['kl']:.3f}", f"{one['tpot_ms']:.2f}"]
        cells += [str(sum(one["cut_off"].values())), str(len(one["failed"]))]
        rows.append(cells)
    parts = [
        f"# Evaluation\n\n`{record['command']}`\n\n{record['machine']}; first_cpp {record['first_cpp']}, llama-cpp-python "
        f"{record['llama_cpp_python']}. Greedy. Questions: "
        + ", ".join(f"{task} {n}" for task, n in record["tasks"].items())
        + f".\nof reference: score / score of `{record['reference']}` on each task's first metric, mean over tasks, 95 % "
        f"interval of a\npaired bootstrap with {record['bootstrap']['draws']} draws. "
        "cut off: answers that the limit of tokens ended, not the model.\n",
        _table(columns, rows),
    ]
    if record["leads"]:
        tasks = list(record["tasks"])
        leads = [
            [f"{one['share']:g}", one["over"], _ci(one["lead"]), *(_ci(one["by_task"][task]) for task in tasks)]
            for one in record["leads"]
        ]
        parts.append("## routed above each baseline at the same share\n")
        parts.append(_table(["share", "baseline", "all tasks", *tasks], leads))
    failures = [
        f"- {one['row']}, question {number}: {error}" for one in record["rows"] for number, error in one["failed"].items()
    ]
    if failures:
        parts.append("## Questions that failed; they count as empty answers\n\n" + "\n".join(failures) + "\n")
    return "\n".join(parts)


def _ci(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} ({interval[1]:.3f} to {interval[2]:.3f})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def draw(record: Record, folder: str) -> None:
    """quality.png: score kept against share and against TPOT. layers.png: how often each task leaves each layer out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for system in dict.fromkeys(one["system"] for one in record["rows"]):
        points = sorted((one for one in record["rows"] if one["system"] == system), key=lambda one: one["share_skipped"] or 0)
        kept = [one["ratio"] for one in points]
        error = [[value - low for value, low, _ in kept], [high - value for value, _, high in kept]]
        left.errorbar(
            [one["share_skipped"] or 0 for one in points],
            [value for value, *_ in kept],
            error,
            marker="o",
            capsize=2,
            label=system,
        )
        right.plot([one["tpot_ms"] for one in points], [value for value, *_ in kept], "o-", label=system)
    left.set(xlabel="share of layers left out", ylabel=f"score / score of {record['reference']}")
    right.set(xlabel="TPOT, ms (median)")
    left.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(os.path.join(folder, "quality.png"))
    plt.close(figure)

    routed = [one for one in record["rows"] if one["system"] == "routed" and one["share_skipped"]]
    if routed:
        figure, axes = plt.subplots(len(routed), 1, figsize=(9, 1.2 + 1.1 * len(routed)), squeeze=False)
        for axis, one in zip(axes[:, 0], routed, strict=True):
            axis.imshow(list(one["layers"].values()), aspect="auto", vmin=0, vmax=1, cmap="Blues")
            axis.set_yticks(range(len(one["layers"])), list(one["layers"]))
            axis.set_title(one["row"], fontsize=8)
        axes[-1, 0].set_xlabel("layer; dark: left out by every prompt")
        figure.tight_layout()
        figure.savefig(os.path.join(folder, "layers.png"))
        plt.close(figure)
