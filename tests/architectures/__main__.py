"""`python -m architectures [NAME ...]`: check all architectures, or some."""

from __future__ import annotations

import argparse
import pathlib
import sys

from .check import Result
from .document import document
from .run import run
from .shapes import ARCHITECTURES


def setup_arg_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m architectures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=ARCHITECTURES, help="architectures; by default all")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="write a document about the results")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="how many at once; default %(default)s")
    return parser


def main() -> int:
    """Check, show and write; status 1 when a result is wrong."""
    parser = setup_arg_parser()
    args = parser.parse_args()
    if unknown := set(args.names) - set(ARCHITECTURES):
        parser.error(f"unknown architectures: {', '.join(sorted(unknown))}")
    results = []
    for result in run(args.names, args.processes):
        print(_line(result), flush=True)
        results.append(result)
    if args.out:
        args.out.write_text(document(results))
    return any(result.outcome == "wrong" for result in results)


def _line(result: Result) -> str:
    told = [result.architecture, result.outcome]
    if result.n_layer:
        told += [f"{result.skippable} of {result.n_layer} layers", f"memory {result.memory}"]
    if result.oracle:
        told += [result.oracle, f"error {result.error:.0e}"]
    return " · ".join([*told, *filter(None, [result.why])])


if __name__ == "__main__":
    sys.exit(main())
