"""Writes the tables of docs/results.md, and docs/gain.svg, from files that commands wrote: python tools/results_page.py"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from chart import Axis, Panel, Series, draw
from figures import Cells, adapter_rows, bench, four_task_rows, interval, machine, measured, results
from marks import NOTES, ROOT, fill

PAGE = os.path.join(ROOT, "docs", "results.md")
PICTURE = os.path.join(ROOT, "docs", "gain.svg")
HELD = os.path.join(ROOT, "docs", "held.svg")
GUIDE = os.path.join(ROOT, "docs", "guide", "calibrate.md")
NOT_YET = "Not measured yet by `python benchmarks/{}.py`."
WAYS = {
    "routed": "routers",
    "set": "best single set",
    "influence": "block influence",
    "random": "random",
    "even": "evenly spaced",
    "last": "last layers",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def kept() -> str:
    """What the bundled adapter keeps, by share."""
    scores = ("qa F1", "tldr ROUGE-L")
    rows = adapter_rows()
    columns = ["skip share", "score / dense", *scores, "KL", "decoding speed / dense"]
    names = ("skipped", "of reference", *scores, "KL")
    return table(
        columns, [[*(row[name] for name in names), f"{speed:.2f}"] for row, (_, speed) in zip(rows, _speeds(rows), strict=True)]
    )


def _speeds(rows: Sequence[Cells]) -> list[tuple[float, float]]:
    """Share and decoding speed of each row, of the first one's."""
    return [(float(row["skipped"]), float(rows[0]["TPOT ms"]) / float(row["TPOT ms"])) for row in rows]


def ways() -> str:
    """Four tasks: what each way to choose layers keeps of a dense model with a LoRA of its own."""
    found = four_task_rows()
    rows = [
        [words, *(found.get(f"{way}@{share}", {}).get("of reference", "") for share in ("0.1", "0.25", "0.4"))]
        for way, words in WAYS.items()
    ]
    return table(["layers chosen by", "0.10", "0.25", "0.40"], rows)


def own_lora() -> str:
    """Every way to choose layers with a LoRA of its own, by what it answers."""
    if not measured("own_lora"):
        return NOT_YET.format("own_lora")
    found, rows = results("own_lora"), []
    report = found["rows"]
    others = report["without"]["translation"]
    tasks = list(report["tasks"])
    for row in report["rows"]:
        scores = {task: next(iter(row["scores"][task].values())) for task in tasks}
        prompts_alone = [scores[task] for task in tasks if "fidelity" in row["scores"][task]]
        rows.append(
            [
                "as it came" if row["row"] == "dense" else row["system"],
                f"{row['share']:.2f}",
                f"{row['share_skipped']:.2f}",
                _ratio(row["ratio"]),
                f"{others['share_skipped'][row['row']]:.2f}",
                _ratio(others["ratio"][row["row"]]),
                "" if row["kl"] is None else f"{row['kl']:.3f}",
                f"{sum(prompts_alone) / len(prompts_alone) / 100:.3f}",
                *(f"{scores[task]:.1f}" for task in tasks if "fidelity" not in row["scores"][task]),
            ]
        )
    metrics = [
        f"{task} {next(iter(report['rows'][0]['scores'][task]))}"
        for task in tasks
        if "fidelity" not in report["rows"][0]["scores"][task]
    ]
    ratios = ["score / dense + LoRA", "score, without translation"]
    figures = ["skipped", ratios[0], "skipped, without translation", ratios[1], "KL", "chat: fidelity"]
    columns = ["layers by", "share", *figures, *metrics]
    lead = {(one["row"], one["share"], one["over"]): one["lead"] for one in others["leads"]}
    leads = [
        [f"{share:g}", over, _ratio(one["lead"]), _ratio(lead[row, share, over])]
        for one in report["leads"]
        for row, share, over in [(one["row"], one["share"], one["over"])]
        if row == "budget"
    ]
    beside = table(["share", "budget above", *ratios], leads)
    by_task = [
        [task, *(_ratio(one["by_task"][task]) for one in report["leads"] if one["over"] == "single set")] for task in tasks
    ]
    shares = [f"at {one['share']:g}" for one in report["leads"] if one["over"] == "single set"]
    beside += "\n\n" + table(["budget above the single set", *shares], by_task)
    prompts = ", ".join(f"{task} {n}" for task, n in report["tasks"].items())
    return f"{table(columns, rows)}\n\n{beside}\n\nTest prompts: {prompts}.\n\n    {found['command']}"


def types() -> str:
    """What a decoding step takes with the base in other types, and with layers skipped."""
    if not measured("types"):
        return NOT_YET.format("types")
    rows = [
        [
            row["model_filename"],
            f"{row['n_skipped']} of {row['n_layer']}",
            f"{row['model_size'] / 1e6:.0f}",
            f"{row['step_p50_ms']:.2f}",
        ]
        for row in bench("types")
        if not row["n_skipped"] or row["model_filename"] == "calibrated.gguf"
    ]
    return f"{table(['file', 'skipped', 'MB', 'median step, ms'], rows)}\n\n    {results('types')['command']}"


def _ratio(interval: Sequence[float]) -> str:
    value, low, high = (f"{number:.3f}" for number in interval)
    return f"{value} ({low} to {high})"


def speed() -> str:
    """Decoding speed over stock, beside the limit."""
    rows = []
    for name in ("limit-smollm2", "limit-1b", "limit-3b"):
        for row in bench(name, engine="first_cpp", skip=0.25):
            model = row["model_type"] if row["random_weights"] else "SmolLM2-135M-Instruct Q4_0"
            skipped = f"{row['n_skipped']} of {row['n_layer']}"
            rows.append([model, skipped, _pm(row, "speedup"), f"{row['byte_limit']:.3f}", _pm(row, "over_pruned")])
    return table(["model", "skipped", "speed / stock", "byte limit", "step / pruned"], rows) + f"\n\n{machine()}."


def _pm(row: dict, key: str) -> str:
    return f"{row[key]:.3f} ± {row[f'{key}_stderr']:.3f}"


def calibration(name: str = "calibration") -> str:
    """KL and fidelity of every way to skip, at equal mean share, on all kinds of prompts. name: of the results."""
    if not measured(name):
        return NOT_YET.format("calibration")
    rows = [
        [
            f"{row['share']:.2f}",
            row["system"],
            _with_interval(row, "kl"),
            _with_interval(row, "fidelity"),
            _with_interval(row, "kl_over_influence", 2),
            _with_interval(row, "kl_over_single set", 2),
        ]
        for row in bench(name, kind="all")
    ]
    columns = ["mean share", "layers by", "KL", "fidelity", "KL / block influence", "KL / single set"]
    told = [i for i in range(len(columns)) if any(row[i] for row in rows)]  # sets that were given come without influence
    rows, columns = [[row[i] for i in told] for row in rows], [columns[i] for i in told]
    return f"{table(columns, rows)}\n\n    {results(name)['command']}"


def gemma() -> str:
    """Another model from calibrate to a table: the rows of `first-cpp eval` before the training, and after it."""
    rows = [
        [
            "with the adapter" if name == "gemma" else "as it came",
            row["row"],
            f"{row['share_skipped']:.3f}",
            f"{row['fidelity']:.3f}",
            "" if row["kl"] is None else f"{row['kl']:.3f}",
        ]
        for name in ("gemma_before", "gemma")
        for row in results(name)["rows"]
    ]
    commands = "\n".join(f"    {results(name)['command']}" for name in ("gemma_before", "gemma"))
    return f"{table(['model', 'row', 'skipped', 'fidelity', 'KL'], rows)}\n\n{commands}"


def calibration_kinds() -> str:
    """The budget beside the single set, by kind of prompt."""
    if not measured("calibration"):
        return NOT_YET.format("calibration")
    rows = []
    for row in bench("calibration", system="budget and sets"):
        if row["kind"] != "all":
            (single,) = bench("calibration", system="single set", kind=row["kind"], share=row["share"])
            parts = [_with_interval(one, key) for one in (single, row) for key in ("kl", "fidelity")]
            rows.append([f"{row['share']:.2f}", row["kind"], str(row["n"]), *parts, f"{row['layers']:.1f}"])
    columns = ["mean share", "kind", "prompts", "single set: KL", "fidelity", "budget: KL", "fidelity", "layers skipped"]
    return table(columns, rows)


def calibrate_runs() -> str:
    """What calibrate says of models, in how long and how much memory."""
    found = [name for name in ("calibrate_runs_smollm2", "calibrate_runs", "calibrate_runs_1b") if measured(name)]
    if not found:
        return NOT_YET.format("calibrate_runs")
    rows = [
        [
            f"{row['model']}, {row['n_layer']} layers, {row['bytes'] / 1e6:.0f} MB",
            f"{row['minutes']:g}",
            f"{row['seconds'] / 60:.1f}",
            f"{row['peak_bytes'] / 1e9:.1f}",
            f"{row['prompts']} of {row['answers']}",
            f"{row['evaluated_tokens']:,}",
            row["sentence"],
        ]
        for name in found
        for row in bench(name)
    ]
    columns = ["model", "--minutes", "took", "memory, GB", "prompts measured of answered", "tokens evaluated", "what it says"]
    commands = "\n".join(f"    {results(name)['command']}" for name in found)
    return f"{table(columns, rows)}\n\n{commands}"


def calibration_growth() -> str:
    """Tokens that a calibration evaluates, by layers, prompts and answer length."""
    if not measured("calibration_growth"):
        return NOT_YET.format("calibration_growth")
    found = results("calibration_growth")
    names = list(found["rows"]["powers"])
    rows = [
        [*(str(row[name]) for name in names), str(len(row["levels"])), f"{row['evaluated_tokens']:,}"]
        for row in sorted(found["rows"]["rows"], key=lambda row: [row[name] for name in names])
    ]
    grow = ", ".join(f"{name} ^ {power:.2f}" for name, power in found["rows"]["powers"].items())
    return f"{table([*names, 'levels', 'tokens evaluated'], rows)}\n\nTokens grow as {grow}.\n\n    {found['command']}"


def _with_interval(row: dict, key: str, digits: int = 3) -> str:
    if key not in row:
        return ""
    value, low, high = (f"{number:.{digits}f}".replace("-0.000", "0.000") for number in (row[key], *row[f"{key}_interval"]))
    return f"{value} ({low} to {high})"


def picture() -> str:
    """Speed and quality against the share, as SVG."""
    rows = adapter_rows()
    deep = [row for row in bench("resident", n_prompt=0) if row["engine"] == "first_cpp"]
    speeds = [
        Series("SmolLM2-135M, 7,680 tokens of context", [_point(row) for row in deep]),
        Series("SmolLM2-135M, short prompts", _speeds(rows)),
        *(
            Series(f"{label}, Q4_0 (random weights)", [_point(row)], line=False)
            for name, label in (("limit-1b", "1B shape"), ("limit-3b", "3B shape"))
            for row in bench(name, engine="first_cpp", skip=0.25)
            if row["model_type"].endswith("Q4_0 (random weights)")
        ),
    ]
    own = [(float(row["skipped"]), *interval(row["of reference"])) for row in rows]
    four = [row for name, row in four_task_rows().items() if name.startswith("routed@")]
    kept = [
        Series("bundled adapter: questions, abstracts (95 %)", own),
        Series(
            "four tasks, of a LoRA trained dense (95 %)",
            [(float(row["skipped"]), *interval(row["of reference"])) for row in four],
        ),
    ]
    return draw(
        "What skipping gains and costs",
        Panel("Decoding speed, dense is 1", (1.0, 1.75), speeds),
        Panel("Quality, share of the dense score kept", (0.0, 1.1), kept),
    )


def _point(row: dict) -> tuple[float, float]:
    return row["n_skipped"] / row["n_layer"], row["speedup"]


def held_picture() -> str:
    """What a held fidelity does prompt by prompt, in the worst order."""
    runs = [run for run in results("held")["rows"]["runs"] if run["order"] == "blocks"]
    n = len(runs[0]["running_mean"])
    axis = Axis("prompts", (0.0, 1.25 * n), [(tick, str(tick)) for tick in range(0, n + 1, 50)])
    means = [Series(f"target {run['target']:g}", list(enumerate(run["running_mean"])), dots=False) for run in runs]
    shares = [Series(f"target {run['target']:g}", _smooth(run["shares"]), dots=False) for run in runs]
    return draw(
        "A fidelity that is held, kinds of prompts one after the other",
        Panel("Mean fidelity as it runs", (0.8, 1.0), means, axis, step=0.05),
        Panel("Skip share, mean of 20 prompts", (0.0, 0.2), shares, axis, step=0.05),
    )


def _smooth(values: list[float], width: int = 20) -> list[tuple[float, float]]:
    return [(float(i), sum(part) / len(part)) for i in range(len(values)) if (part := values[max(0, i - width + 1) : i + 1])]


def main() -> None:
    fill(PAGE, "tools/results_page.py kept", kept())
    fill(PAGE, "tools/results_page.py ways", ways())
    fill(PAGE, "tools/results_page.py own_lora", own_lora())
    fill(PAGE, "tools/results_page.py types", types())
    fill(PAGE, "tools/results_page.py calibration_tasks", calibration("calibration_tasks"))
    fill(PAGE, "tools/results_page.py speed", speed())
    fill(PAGE, "tools/results_page.py calibration", calibration())
    fill(PAGE, "tools/results_page.py calibration_kinds", calibration_kinds())
    fill(PAGE, "tools/results_page.py calibrate_runs", calibrate_runs())
    fill(PAGE, "tools/results_page.py gemma", gemma())
    fill(PAGE, "tools/results_page.py calibration_everyday", calibration("calibration_everyday"))
    fill(NOTES, "tools/results_page.py chat_as_it_comes", calibration("calibration_chat"))
    fill(NOTES, "tools/results_page.py chat_everyday", calibration("calibration_everyday_1000"))
    fill(GUIDE, "tools/results_page.py calibration_growth", calibration_growth())
    with open(PICTURE, "w", encoding="utf-8") as file:
        file.write(picture())
    with open(HELD, "w", encoding="utf-8") as file:
        file.write(held_picture())


if __name__ == "__main__":
    main()
