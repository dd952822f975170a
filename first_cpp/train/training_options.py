"""The options of `first-cpp train`, in groups, with the checks that need one option alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..cli.execute import add_debug
from ..cli.model_name import HELP, add_offline
from ..cli.options import number, whole_number
from ..skip import FIXED
from .settings import Ask, Settings

EPILOG = """examples:
  first-cpp train --model model.gguf --data data.jsonl --out run
  first-cpp train --model model.gguf --data data.jsonl --out set --layers search
  first-cpp train --model model.gguf --prompts self --limit 8 --out own

Each line of data is an object with prompt, response and, of several, task.
Then write the model that skips layers:
  python -m convert --model model.gguf --routers run --merge --out first.gguf
"""
USAGE = """%(prog)s --model MODEL --data JSONL ... --out DIR [OPTION ...]
       %(prog)s --model GGUF --prompts JSONL ... --out DIR [OPTION ...]"""
DEFAULT = " (default: %(default)s)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `first-cpp train`.

    >>> parser = argparse.ArgumentParser()
    >>> add_arguments(parser)
    >>> parser.parse_args(["--model", "m.gguf", "--data", "train.jsonl", "--out", "run"]).batch_size
    8
    """
    parser.usage, parser.epilog, parser.formatter_class = USAGE, EPILOG, _formatter
    for title, add_options in _GROUPS.items():
        add_options(parser.add_argument_group(title).add_argument)
    add_debug(parser)


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Two columns that hold nearly every option in one line of 80."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28)


Add = Callable[..., Any]
"""`add_argument` of an argument group."""


def _model(add: Add) -> None:
    add("-m", "--model", required=True, metavar="MODEL", help=f"a Hugging Face folder, {HELP}")
    add_offline(add)
    add("--out", required=True, metavar="DIR", help="folder for what the run writes")
    precisions = ["auto", "bf16", "float32"]
    add("--precision", default="auto", metavar="TYPE", choices=precisions, help="bf16, float32 or auto: what is native here")


def _data(add: Add) -> None:
    add("--data", nargs="+", default=[], metavar="JSONL", help="training data: lines with prompt and response")
    asked = "prompts that a GGUF answers itself; self: it writes them"
    add("--prompts", nargs="+", default=[], metavar="JSONL", help=asked)
    add("--samples", type=whole_number(0), default=0, metavar="N", help="answers drawn of each, 0: greedy" + DEFAULT)
    heat = "of drawn answers" + DEFAULT
    add("--sample-temperature", type=above_zero, default=Ask.temperature, metavar="X", help=heat)
    longest = "longest dense answer, in tokens" + DEFAULT
    add("-n", "--max-tokens", type=whole_number(1), default=Ask.max_tokens, metavar="N", help=longest)
    add("--valid", nargs="*", default=[], metavar="JSONL", help="validation data, as --data or --prompts")
    add("--search-data", nargs="+", default=[], metavar="JSONL", help="data to order layers on (default: --data)")
    add("--limit", type=whole_number(1), metavar="N", help="train on N examples, equally many of each task")
    add("--valid-limit", type=whole_number(0), default=200, metavar="N", help="validate on N" + DEFAULT)
    add("--max-prompt", type=whole_number(1), default=1024, metavar="N", help="most tokens of a prompt" + DEFAULT)
    add("--max-response", type=whole_number(1), default=512, metavar="N", help="most tokens of a response" + DEFAULT)


def _lora(add: Add) -> None:
    add("--rank", type=whole_number(0), default=16, metavar="N", help="LoRA rank, 0 for none" + DEFAULT)
    add("--lr", type=above_zero, default=Settings.lr, metavar="X", help="learning rate of the LoRA" + DEFAULT)
    init = "start from earlier runs or bundled adapters: the mean of their LoRA, the routers of the last"
    add("--init", nargs="+", metavar="RUN", help=init)
    rounded = "train the weights that `convert --quantize TYPE` will round: Q4_0, Q4_1, Q5_0 or Q5_1"
    add("--quantize", default="", metavar="TYPE", choices=["Q4_0", "Q4_1", "Q5_0", "Q5_1"], help=rounded)


def _layers(add: Add) -> None:
    who = f"who chooses: routers, or one set for all prompts: search, {', '.join(FIXED)}, or layers as a list like 14,13,5"
    add("--layers", type=who_chooses, default="routers", metavar="WHO", help=who + DEFAULT)
    sets = "skip the sets of this calibrated file, as it chooses"
    add("--sets", metavar="FILE", help=sets)
    add("--max-share", type=share, default=Settings.max_share, metavar="SHARE", help="largest skip share, 0: dense" + DEFAULT)
    recommended = 'share that skip="auto" takes (default: 0.25; two-step: the scores below 0.5; without routers: 0)'
    add("--skip", type=share, metavar="SHARE", help=recommended)
    order = "order of layers that routers start from: search (default) or influence; overrides the routers of --init"
    add("--start", choices=["search", "influence"], metavar="ORDER", help=order)
    add("--router-lr", type=above_zero, default=Settings.router_lr, metavar="X", help="learning rate of routers" + DEFAULT)
    add("--temperature", type=above_zero, default=0.05, metavar="X", help="of the gradient to routers" + DEFAULT)


def _schedule(add: Add) -> None:
    add("--epochs", type=number(0), default=Settings.epochs, metavar="X", help="times to read the data; may be 0" + DEFAULT)
    add("--batch-size", type=whole_number(1), default=Settings.batch_size, metavar="N", help="examples in a batch" + DEFAULT)
    add("--accumulate", type=whole_number(1), default=Settings.accumulate, metavar="N", help="batches in a step" + DEFAULT)
    tokens = "tokens in a micro-batch" + DEFAULT
    add("--part-tokens", type=whole_number(1), default=Settings.part_tokens, metavar="N", help=tokens)
    passes = "updates a batch, the first dense" + DEFAULT
    add("--passes", type=whole_number(1), default=Settings.passes, metavar="N", help=passes)
    average = "last part of the run, whose mean weights are kept"
    add("--average", type=number(0, 1), default=Settings.average, metavar="PART", help=average)


def _loss(add: Add) -> None:
    add("--distill", type=number(0), default=Settings.distill, metavar="X", help="weight of KL to the dense output" + DEFAULT)
    add("--teacher", default="", metavar="RUN", help="match an earlier run's dense output, or base")


def _two_step(add: Add) -> None:
    recipe = "two-step: routers, then LoRA" + DEFAULT
    add("--recipe", default=Settings.recipe, choices=["exact", "two-step"], metavar="NAME", help=recipe)
    part = "part of the run for routers" + DEFAULT
    add("--router-part", type=number(0, 1), default=Settings.router_part, metavar="PART", help=part)
    add("--alpha", type=number(0), default=Settings.alpha, metavar="X", help="penalty for not skipping" + DEFAULT)
    decided = "penalty on scores near 0.5" + DEFAULT
    add("--regulariser", type=number(0), default=Settings.regulariser, metavar="X", help=decided)


def _run(add: Add) -> None:
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    add("--stop-after", type=whole_number(1), metavar="STEP", help="end early, to --resume later on the same schedule")
    minutes = "minutes between checkpoints" + DEFAULT
    add("--checkpoint", type=number(0), default=5.0, metavar="MINUTES", help=minutes)
    add("--validate", type=whole_number(0), default=0, metavar="STEPS", help="steps between validations; 0: at the end")
    add("--seed", type=int, default=Settings.seed, metavar="N", help="same seed, same weights" + DEFAULT)
    many = "on this machine, each with the model and a part of every batch" + DEFAULT
    add("--processes", type=whole_number(1), default=1, metavar="N", help=many)
    add("--quiet", action="store_true", help="no plan and no progress bar")


_GROUPS: dict[str, Callable[[Add], None]] = {
    "model": _model,
    "data": _data,
    "LoRA": _lora,
    "layers to skip": _layers,
    "schedule": _schedule,
    "loss": _loss,
    "two-step recipe": _two_step,
    "the run": _run,
}


def share(text: str) -> float:
    """An argparse type: a skip share.

    >>> share("0.25")
    0.25
    """
    try:
        value = number(0)(text)
    except argparse.ArgumentTypeError:
        value = 1.0
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a skip share: 0 up to, not including, 1")
    return value


def above_zero(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = number(0)(text)
    if value == 0:
        raise argparse.ArgumentTypeError("it must be above 0")
    return value


def who_chooses(text: str) -> str | tuple[int, ...]:
    """An argparse type: who chooses the layers by name, or layers in an order.

    >>> who_chooses("14,13,5")
    (14, 13, 5)
    """
    if text in ("routers", "search", *FIXED):
        return text
    layers = text.split(",")
    if not all(layer.strip().isdecimal() for layer in layers) or len(set(map(int, layers))) < len(layers):
        raise argparse.ArgumentTypeError(f"{text!r} is none of routers, search, {', '.join(FIXED)}, and no list of layers")
    return tuple(map(int, layers))
