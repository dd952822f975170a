"""Writes the tables of docs/results.md and the picture docs/gain.svg from files that commands wrote: python tools/results_page.py"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from chart import Panel, Series, draw
from figures import adapter_rows, bench, four_task_rows, interval, machine
from marks import ROOT, fill

PAGE = os.path.join(ROOT, "docs", "results.md")
PICTURE = os.path.join(ROOT, "docs", "gain.svg")
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
    dense = float(rows[0]["TPOT ms"])
    return table(
        ["skip share", "score / dense", *scores, "KL", "decoding speed / dense"],
        [
            [row["skipped"], row["of reference"], *(row[name] for name in scores), row["KL"], f"{dense / float(row['TPOT ms']):.2f}"]
            for row in rows
        ],
    )  # fmt: skip


def ways() -> str:
    """Four tasks: what each way to choose layers keeps of a dense model with a LoRA of its own."""
    found = four_task_rows()
    rows = [
        [words, *(found.get(f"{way}@{share}", {}).get("of reference", "") for share in ("0.1", "0.25", "0.4"))]
        for way, words in WAYS.items()
    ]
    return table(["layers chosen by", "0.10", "0.25", "0.40"], rows)


def speed() -> str:
    """Decoding speed over stock, beside the limit."""
    rows = []
    for name in ("limit-smollm2", "limit-1b", "limit-3b"):
        for row in bench(name, engine="first_cpp", skip=0.25):
            model = row["model_type"] if row["random_weights"] else "SmolLM2-135M-Instruct Q4_0"
            skipped = f"{row['layers_skipped']} of {row['n_layer']}"
            rows.append([model, skipped, _pm(row, "speedup"), f"{row['byte_limit']:.3f}", _pm(row, "over_pruned")])
    return table(["model", "skipped", "speed / stock", "byte limit", "step / pruned"], rows) + f"\n\n{machine()}."


def _pm(row: dict, key: str) -> str:
    return f"{row[key]:.3f} ± {row[f'{key}_stderr']:.3f}"


def picture() -> str:
    """Speed and quality against the share, as SVG."""
    rows = adapter_rows()
    deep = [row for row in bench("resident", n_prompt=0) if row["engine"] == "first_cpp"]
    short = [(float(row["skipped"]), float(rows[0]["TPOT ms"]) / float(row["TPOT ms"])) for row in rows]
    others = [
        Series(f"{label}, Q4_0 (random weights)", [(row["layers_skipped"] / row["n_layer"], row["speedup"])], line=False)
        for name, label in (("limit-1b", "1B shape"), ("limit-3b", "3B shape"))
        for row in bench(name, engine="first_cpp", skip=0.25)
        if row["model_type"].endswith("Q4_0 (random weights)")
    ]
    own = [(float(row["skipped"]), *interval(row["of reference"])) for row in rows]
    return draw(
        "What skipping gains and costs",
        Panel(
            "Decoding speed, dense is 1",
            (1.0, 1.75),
            [
                Series("SmolLM2-135M, 7,680 tokens of context", [(r["layers_skipped"] / r["n_layer"], r["speedup"]) for r in deep]),
                Series("SmolLM2-135M, short prompts", short),
                *others,
            ],
        ),
        Panel(
            "Quality, share of the dense score kept",
            (0.0, 1.1),
            [Series("bundled adapter: questions, abstracts (95 %)", own), _four_tasks()],
        ),
    )  # fmt: skip


def _four_tasks() -> Series:
    found = four_task_rows()
    points = [(float(row["skipped"]), *interval(row["of reference"])) for name, row in found.items() if name.startswith("routed@")]
    return Series("four tasks, of a LoRA trained dense (95 %)", points)


def main() -> None:
    fill(PAGE, "tools/results_page.py kept", kept())
    fill(PAGE, "tools/results_page.py ways", ways())
    fill(PAGE, "tools/results_page.py speed", speed())
    with open(PICTURE, "w", encoding="utf-8") as file:
        file.write(picture())


if __name__ == "__main__":
    main()
