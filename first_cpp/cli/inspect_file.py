"""Print the routers of a GGUF file: sizes, base model, recommended share, levels and tolerances, training record."""

from __future__ import annotations

import argparse
import contextlib
import os

from ..gguf.cost_probes import CostProbes
from ..gguf.model_file import open_gguf
from ..gguf.printable import printable
from ..gguf.router_format import read_routers
from ..gguf.routers import Routers
from ..llama import Llama
from .execute import add_debug
from .model_name import add_offline, find_model_to_use
from .next_commands import next_commands


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a GGUF model or side file, demo, or hf:USER/NAME[:FILE or TYPE]")
    parser.add_argument(
        "--check", action="store_true", help="load the model and show which of its layers can be skipped; exit code 1 if none"
    )
    add_offline(parser.add_argument)
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    path = find_model_to_use(args.file, args.offline)
    first = open_gguf(path)
    routers = read_routers(first, path)
    print(f"{path}: no routers" if routers is None else describe(routers, path))
    if args.check:
        check(path)
    if routers is None and not (first.kind("general.type") == "str" and first.get("general.type") == b"adapter"):
        out = f"{os.path.basename(path).removesuffix('.gguf')}-first.gguf"
        print(next_commands(["first-cpp", "calibrate", "-m", args.file, "--out", out]))


def check(path: str) -> None:
    """Print which layers of a model can be skipped. Raises RuntimeError when none can."""
    with contextlib.closing(Llama(path, skip=None, n_ctx=256, verbose=False)) as llm:
        reasons, unsupported = llm.unskippable, llm.dense_because
    if unsupported:
        raise RuntimeError(f"{path}: no layer can be skipped, it would run dense: {unsupported}")
    skippable = [layer for layer, why in enumerate(reasons) if not why]
    print(f"skippable    {ranges(skippable)} ({len(skippable)} of {len(reasons)} layers)")
    for why in dict.fromkeys(filter(None, reasons)):
        print(f"not          {ranges([layer for layer, because in enumerate(reasons) if because == why])}: {why}")


def ranges(numbers: list[int]) -> str:
    """Ascending numbers as text, neighbours joined.

    >>> ranges([0, 1, 2, 3, 7])
    '0-3, 7'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def describe(routers: Routers, path: str) -> str:
    """What `inspect` prints, a fact a line."""
    unskippable = [layer for layer, ok in enumerate(routers.skippable) if not ok]
    lines = [
        f"{path}",
        f"routers      {_routers(routers)}",
        f"base         {routers.base.architecture}, fingerprint {routers.base.fingerprint[:16]}...",
        f"recommended  {_recommended(routers)}",
        f"unskippable  {', '.join(map(str, unskippable)) or 'none'}",
        f"written by   {routers.writer or 'unknown'}",
    ]
    lines += _levels(routers.cost) if routers.cost is not None else []
    lines += [f"{'train.' + key:<12} {value}" for key, value in sorted(routers.train.items())]
    return "\n".join(printable(line) for line in lines)


def _recommended(routers: Routers) -> str:
    """What `skip="auto"` does, and with cost probes what may be skipped alike for every prompt."""
    if routers.cost is None:
        return f"skip={routers.skip:.3g}"
    share = routers.cost.mean_share(routers.cost.tolerance)
    return f'skip="auto", {share:.0%} of the layers on average; for every prompt alike skip={routers.skip:.3g}'


def _routers(routers: Routers) -> str:
    if routers.kind == "sets":
        return "whole sets of layers, as many as a prompt can spare by the cost probes"
    n_layer, n_embd = routers.weight.shape
    kind = "linear" if routers.weight.any() else "input-blind (all weights are zero)"
    return f"{n_layer} layers x {n_embd} values, {kind}, norm_eps {routers.norm_eps:g}"


def _levels(cost: CostProbes) -> list[str]:
    """Levels, their sets, and what tolerances gave on prompts kept out."""
    n_set, n_read, n_embd = cost.weight.shape
    read = [
        f"{', '.join(map(str, layers))}{of}" for layers, of in ((cost.read, ""), (cost.last, " at the last position")) if layers
    ]
    margin = f", margin {cost.margin:g}" if n_set > len(cost.levels) else ""  # where there is a choice of sets
    lines = [
        f"cost probes  {n_set} sets x {n_read} read layers ({'; '.join(read)}) x {n_embd} values",
        f"levels       {', '.join(map(str, cost.levels))} layers",
        f"tolerance    {cost.tolerance:g} nats a token for fidelity {cost.fidelity:g}{margin}",
    ]
    for level in cost.levels if cost.order else ():
        sets = [ranges(list(cost.sets[number].layers)) for number in cost.of_level(level)]
        lines.append(f"{f'skip {level}':<12} {' | '.join(sets)}")
    if cost.table:
        lines.append("tolerance    mean share  fidelity  KL (nats a token), on prompts kept out")
    lines += [f"{p.tolerance:<12.4g} {p.share:<11.3f} {p.fidelity:<9.3f} {p.kl:.4f}" for p in cost.table]
    return lines
