"""Writes docs/what-else.md and its picture from benchmarks/results/what_else.json: python tools/what_else_page.py"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any

from chart import Axis, Panel, Series, draw
from figures import results
from marks import ROOT
from results_page import table

PAGE = os.path.join(ROOT, "docs", "what-else.md")
PICTURE = os.path.join(ROOT, "docs", "what-else.svg")
SHAPES = {"llama-3.2-1b": "1B shape", "llama-3.2-3b": "3B shape"}
THREADS = (1, 2)
MIDDLE, FEWEST, MOST = "q4_k_m", "q2_k", "q8_0"
Row = dict[str, Any]


def rows() -> list[Row]:
    """One row a shape, type and number of threads: medians over the rounds. Ordered by the bytes that a token reads."""
    cells: dict[tuple[str, str, int], list[Row]] = {}
    for one in results("what_else")["rows"]["decode"]:
        cells.setdefault((one["shape"], one["type"], one["n_threads"]), []).append(one)
    keys = ("dense_ms", "skipping_ms", "speedup")
    found = [{**rounds[0], **{key: statistics.median(one[key] for one in rounds) for key in keys}} for rounds in cells.values()]
    return sorted(found, key=lambda one: -one["dense_bytes"])


def of(shape: str, threads: int) -> dict[str, Row]:
    """The rows of one shape and number of threads, by type."""
    return {one["type"]: one for one in rows() if (one["shape"], one["n_threads"]) == (shape, threads)}


def gain(found: dict[str, Row], more: str, fewer: str) -> tuple[float, float]:
    """By how much a type of fewer bits reads less and is faster."""
    a, b = found[more], found[fewer]
    return a["dense_bytes"] / b["dense_bytes"], a["dense_ms"] / b["dense_ms"]


def layers(found: dict[str, Row]) -> tuple[float, float]:
    """By how much less is read without the layers, and how much faster that is: medians over the types."""
    read = statistics.median(one["dense_bytes"] / one["skipping_bytes"] for one in found.values())
    return read, statistics.median(one["speedup"] for one in found.values())


def gains() -> str:
    columns = ["", "threads", "8 to 4 bits: read", "speed", "4 to 2 bits: read", "speed", "a quarter skipped: read", "speed"]
    cells = []
    for shape, words in SHAPES.items():
        for threads in THREADS:
            found = of(shape, threads)
            pairs = [gain(found, MOST, MIDDLE), gain(found, MIDDLE, FEWEST), layers(found)]
            figures = [text for read, speed in pairs for text in (f"1/{read:.2f}", f"{speed:.2f}x")]
            cells.append([words, str(threads), *figures])
    return table(columns, cells)


def reached(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The least and the most of what reading less promises that was reached: 1 is all of it."""
    shares = [(speed - 1) / (read - 1) for read, speed in pairs]
    return min(shares), max(shares)


def verdict() -> str:
    """What the figures say of the claim. A gain is all of it from 0.9 of what reading less promises, little up to a half."""
    every = [of(shape, threads) for shape in SHAPES for threads in THREADS]

    def say(what: str, pairs: Sequence[tuple[float, float]]) -> str:
        least, most = reached(pairs)
        words = "all of it" if least >= 0.9 else "little of it" if most <= 0.5 else "part of it"
        return f"- {what}: **{words}**, {100 * least:.0f} to {100 * most:.0f} % of what reading fewer bytes promises."

    return "\n".join(
        [
            say("Fewer bits, from 8 to 4 (Q8_0 to Q4_K_M)", [gain(found, MOST, MIDDLE) for found in every]),
            say("Fewer bits still, from 4 to 2 (Q4_K_M to Q2_K)", [gain(found, MIDDLE, FEWEST) for found in every]),
            say("Fewer layers, a quarter skipped", [layers(found) for found in every]),
        ]
    )


def speeds(shape: str) -> str:
    """Tokens a second of every type, dense and with layers skipped."""
    columns = ["type", "GiB a token", *(text for n in THREADS for text in (_threads(n), "a quarter skipped", "speed-up"))]
    by_threads = [of(shape, threads) for threads in THREADS]
    cells = []
    for kind, first in by_threads[0].items():
        cells.append([kind.upper(), f"{first['dense_bytes'] / 2**30:.2f}"])
        for one in (found[kind] for found in by_threads):
            cells[-1] += [f"{1e3 / one['dense_ms']:.1f}", f"{1e3 / one['skipping_ms']:.1f}", f"{one['speedup']:.2f}"]
    return table(columns, cells)


def _threads(n: int) -> str:
    return f"{n} thread" + "s" * (n > 1)


def drafts() -> tuple[str, str]:
    """What a step that checks a draft costs, and what drafts gained on real text."""
    found = results("what_else")["rows"]
    n_draft = found["draft"]
    costs = [
        [SHAPES[one["shape"]], str(one["n_threads"]), f"{one['cost']:.2f}", f"{one['cost'] - 1:.2f} of {n_draft}"]
        for one in found["step"]
    ]
    real = [
        [
            str(one["n_threads"]),
            "dense" if one["engine"] == "stock" else "a quarter skipped",
            f"of {one['draft']}" if one["draft"] else "none",
            f"{one['speedup']:.2f}",
        ]
        for one in found["text"]
    ]
    return (
        table(["Q4_0", "threads", f"step of {1 + n_draft} tokens over one of 1", "right before it pays"], costs),
        table(["threads", "layers", "drafts", "speed-up"], real),
    )


def picture() -> str:
    """Tokens a second over the types, from most bits to fewest."""
    panels = []
    for shape, words in SHAPES.items():
        kinds = list(of(shape, THREADS[0]))
        axis = Axis("", (-0.4, len(kinds) - 0.6), [(i, kind.upper()) for i, kind in enumerate(kinds)], 11)
        series = [
            Series(f"{_threads(n)}, {label}", [(i, 1e3 / of(shape, n)[kind][key]) for i, kind in enumerate(kinds)])
            for n in THREADS
            for label, key in (("full model", "dense_ms"), ("a quarter of the layers skipped", "skipping_ms"))
        ]
        top = max(point[1] for one in series for point in one.points)
        step = 10.0 if top > 30 else 5.0
        panels.append(Panel(f"{words}, tokens a second", (0.0, step * (top // step + 1)), series, axis, step, ".0f"))
    return draw("Fewer bits and fewer layers", *panels)


WORDS = """# What else could I do?

You have a laptop, few threads, and want more tokens a second. Three ways, measured on one machine: fewer bits a weight, fewer
layers, drafts. {machine}; llama-cpp-python {llama_cpp_python}. Random weights: kernels do not look
at values. Decoding alone, in an empty context; medians of steps taken in turns, and of {rounds} rounds.

![Tokens a second by type, full model and with a quarter of the layers skipped](what-else.svg)

## Bits or layers

The claim to prove or refute: at few threads fewer bits bring little, and fewer layers bring all of it. A step reads all weights
once, so reading fewer bytes promises as much more speed; how much of that comes:

{verdict}

Weights of few bits are unpacked before they are used, which takes time that fewer bytes do not shorten; a skipped layer is
neither read nor unpacked. The two ways add up: the gain of skipped layers is about the same at every type.

{gains}

read: bytes of weights a token. speed: tokens a second over those before; of skipping, the median over the types.
What skipping costs in quality is measured in [Results](results.md); what fewer bits cost depends on the model.

{speeds}

## Drafts

A draft guesses {draft} tokens and the model checks them in one step, which costs more than a step of one token:

{costs}

right before it pays: so many of the guessed tokens must be right, on average, before a draft saves anything.

How many are right depends on the text, so random weights cannot say it. Real text by a real model: SmolLM2-135M-Instruct Q4_0
with llama_cpp's prompt lookup, on summaries that stay close to the words of their text, which suits it. Speed-up per token over
the full model without drafts, prompt included:

{real}

To reproduce, in some minutes; `make bench` runs it too:

    {command}
"""


def page() -> str:
    found = results("what_else")
    figures = found["rows"]
    n_layers = {one["shape"]: f"{one['n_skipped']} of {one['n_layer']}" for one in figures["decode"]}
    costs, real = drafts()
    return WORDS.format(
        **{key: found[key] for key in ("machine", "llama_cpp_python", "command")},
        **{key: figures[key] for key in ("rounds", "draft")},
        verdict=verdict(),
        gains=gains(),
        speeds="\n\n".join(
            f"## {words}, {n_layers[shape]} layers skipped\n\n{speeds(shape)}" for shape, words in SHAPES.items()
        ),
        costs=costs,
        real=real,
    )


def main() -> None:
    for path, text in ((PAGE, page()), (PICTURE, picture())):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
