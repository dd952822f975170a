"""Print the routers of a GGUF file: sizes, base model, recommended share, unskippable layers, training record."""

from __future__ import annotations

import argparse

from .exit import add_debug
from .model_file import normal_path, open_gguf
from .routers import Routers, read_routers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a GGUF model or side file")
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    path = normal_path(args.file)
    routers = read_routers(open_gguf(path), path)
    print(f"{path}: no routers" if routers is None else describe(routers, path))


def describe(routers: Routers, path: str) -> str:
    """What `inspect` prints, a fact a line."""
    n_layer, n_embd = routers.weight.shape
    unskippable = [layer for layer, ok in enumerate(routers.skippable) if not ok]
    kind = "linear" if routers.weight.any() else "input-blind (all weights are zero)"
    lines = [
        f"{path}",
        f"routers      {n_layer} layers x {n_embd} values, {kind}, norm_eps {routers.norm_eps:g}",
        f"base         {routers.base.architecture}, fingerprint {routers.base.fingerprint[:16]}...",
        f"recommended  skip={routers.skip:g}",
        f"unskippable  {', '.join(map(str, unskippable)) or 'none'}",
        f"written by   {routers.writer or 'unknown'}",
    ]
    lines += [f"train.{key:<7}{value}" for key, value in sorted(routers.train.items())]
    return "\n".join(lines)
