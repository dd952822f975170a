"""Measure what skipping layers gains on this machine: stock llama_cpp.Llama, first_cpp and the pruned file, in turns.

Flags, tests and formats are llama-bench's; sampling is timed with the decoding before it, as a user waits for both.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

import llama_cpp

from .._version import __version__
from ..cli.extras import need_extra
from ..cli.model_name import find_model, find_model_to_use, find_models
from ..errors import OptionError
from ..gguf.new_file import check_regular
from ..runtime.machine import describe_machine, physical_cores
from .flags import add_arguments
from .formats import write
from .models import BenchModel, check_models, models_of
from .one_configuration import Asked, Bench
from .records import Record
from .table import Table, heading
from .workload import Configuration, Test, configurations_of

__all__ = ["add_arguments", "command"]


def command(args: argparse.Namespace) -> None:
    """Measure and report: a table row by row, other formats at the end."""
    configurations = list(configurations_of(args))
    asked = Asked.of(args)
    find_models(args, "model", find=find_model_to_use if args.routers is None else find_model)
    find_models(args, "vs")
    check_models(args)
    if args.plot:
        _check_plot(args.plot, asked.tests)
    _warn_of_threads(configurations)
    shown = [(args.output, sys.stdout), *([(args.output_err, sys.stderr)] if args.output_err else [])]
    tables = [stream for form, stream in shown if form == "md"]
    records: list[Record] = []
    for model in models_of(args):
        for configuration in configurations:
            with Bench.prepare(model, configuration, asked, _progress(model, args.progress)) as bench:
                records += _measured(bench, args.wide, tables)
    for stream in tables:
        print(f"first_cpp {__version__}, llama-cpp-python {llama_cpp.__version__}; {describe_machine()}", file=stream)
    for form, stream in shown:
        if form != "md":
            print(write(records, form), end="", file=stream)
    if args.plot:
        from .plot import draw, not_drawn

        draw(records, args.plot)
        if rest := not_drawn(records):
            print(rest, file=sys.stderr)


def _check_plot(path: str, tests: Sequence[Test]) -> None:
    need_extra("--plot", "bench", "matplotlib")
    if not any(test.n_gen for test in tests):
        raise OptionError("--plot draws decoding: give -n or -pg")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise OptionError(f"--plot: the folder of {path} does not exist")
    check_regular(path)


def _warn_of_threads(configurations: Sequence[Configuration]) -> None:
    cores = physical_cores()
    if max(one["n_threads"] for one in configurations) > cores:
        there = "physical core" if cores == 1 else f"{cores} physical cores"
        print(f"warning: more threads than the {there}: expect slower and noisier runs", file=sys.stderr)


def _progress(model: BenchModel, on: bool) -> Callable[[str], object]:
    def show(what: str) -> None:
        if on:
            print(f"first-cpp bench: {model.name}: {what}", file=sys.stderr, flush=True)

    return show


def _measured(bench: Bench, wide: bool, tables: Sequence[TextIO]) -> Iterator[Record]:
    """Measure; the rows of each test are written when they are complete, and what must be known beside them."""
    table = Table(bench.asked.tests, bench.rows, bench.n_layer, bench.asked.resident, wide)
    for number, records in enumerate(bench.run()):
        for stream in tables:
            if number == 0:
                print(f"{heading(records[0])}\n{table.head()}", file=stream)
            print("\n".join(map(table.line, records)), file=stream, flush=True)
        yield from records
    notes = bench.notes()
    if table.spared:
        notes.append(f"not shown, for want of width: {', '.join(table.spared)}; --wide shows all columns")
    for stream in tables:
        print("".join(f"\n{note}" for note in notes) + "\n", file=stream)
