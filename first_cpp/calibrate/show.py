"""What a person sees of a calibration: progress while it runs, the table and the picture at its end."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from ..gguf.new_file import new_file
from .findings import Findings, Row
from .procedure import Show


@contextmanager
def progress(quiet: bool) -> Iterator[Show]:
    """A bar on stderr, and the lines that stay above it; neither where `quiet`, lines alone where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task("opening the model", total=1)

        def bar(what: str, done: float, total: float) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield Show(bar, console.print)


LEGEND = (
    "skipped: of {n_layer} layers, mean over prompts. searched, influence, even: the same set for every prompt, by the search, "
    "by block influence, evenly spaced. budget: of the searched sets as many layers as each prompt can spare; oracle: so, "
    "if costs were known before. recommended: what skip=auto does. limit: the speed-up if only reading weights took time."
)
COLUMNS = ("skipped", "system", "KL", "fidelity", "perplexity", "speed-up", "limit")


def table(found: Findings) -> str:
    """The rows as a Markdown table."""
    rows = [_cells(row) for row in found.rows]
    widths = [max(len(cells[i]) for cells in [COLUMNS, *rows]) for i in range(len(COLUMNS))]
    lines = [COLUMNS, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def wrapped(text: str) -> str:
    """The text as it is read best: whole words in the lines of a terminal, one line where a program reads."""
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) if sys.stdout.isatty() else text


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.layers:.1f}",
        row.system,
        f"{row.kl:.3f}",
        f"{row.fidelity:.3f}",
        f"{row.perplexity:.2f}",
        "busy" if row.speed_up is None else f"{row.speed_up:.2f}",
        f"{row.byte_limit:.2f}",
    )


def draw(found: Findings, path: str) -> None:
    """KL and fidelity against the share of layers skipped, fidelity against the speed-up. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n_layer = found.calibration.base.n_layer
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4))
    for system, style in (("influence", "x:"), ("even", "+:"), ("searched", "s--"), ("budget", "o-"), ("oracle", "^-")):
        points = [row for row in found.rows if row.system in (system, "dense")]
        shares = [row.layers / n_layer for row in points]
        left.plot(shares, [row.kl for row in points], style, label=system)
        middle.plot(shares, [row.fidelity for row in points], style)
        right.plot([row.speed_up or row.byte_limit for row in points], [row.fidelity for row in points], style)
    middle.axhline(found.calibration.fidelity, color="grey", linewidth=0.8)
    right.axhline(found.calibration.fidelity, color="grey", linewidth=0.8)
    left.set(xlabel="share of layers skipped, mean", ylabel="KL to dense, nats a token")
    middle.set(xlabel="share of layers skipped, mean", ylabel="fidelity")
    measured = found.rows[0].speed_up is not None
    right.set(xlabel="speed-up, measured" if measured else "speed-up, most that bytes allow", ylabel="fidelity")
    left.legend()
    figure.suptitle(f"{found.n_kept_out} prompts kept out")
    figure.tight_layout()
    with new_file(path) as file:
        figure.savefig(file, format="png")
    plt.close(figure)
