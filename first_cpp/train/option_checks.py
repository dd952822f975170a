"""Which options of `first-cpp train` go together: checked before anything is loaded."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from ..cli.folder_lock import check_unlocked
from ..errors import OptionError
from ..gguf.new_file import check_folder
from .launch import is_rank
from .settings import RECORDED, order_to_find

FILES = (
    "train.json",
    "checkpoint.pt",
    "log.csv",
    "valid.jsonl",
    "routers.safetensors",
    "layers.png",
    "answers.jsonl",
    "answers.gguf",
    "prompts.jsonl",
)
"""Of a run's folder."""
BEGINNINGS = {"log.csv": b"step,", "valid.jsonl": b'{"step"', "answers.jsonl": b'{"key"', "prompts.jsonl": b'{"key"'}
"""How those begin that a run goes on with, or removes where it was killed before its first checkpoint."""


def check_options(args: argparse.Namespace) -> None:
    """Raise OptionError, naming the options and the remedy, for the first contradiction there is, OutputError for --out."""
    check_folder(args.out, FILES)
    if not is_rank():  # the main one of several holds it already
        check_unlocked(args.out)
    for contradiction in _contradictions(args):
        raise OptionError(contradiction)


def check_not_taken(args: argparse.Namespace) -> None:
    """Raise OptionError where --out holds a run that is not to go on."""
    if not args.resume and any(os.path.exists(os.path.join(args.out, name)) for name in ("train.json", "checkpoint.pt")):
        raise OptionError(f"--out {args.out} holds a run already; choose another folder, or go on with --resume")


def _contradictions(args: argparse.Namespace) -> Iterator[str]:
    yield from _of_data(args)
    yield from _of_layers(args)
    yield from _of_lora(args)
    if args.teacher and (args.recipe == "two-step" or args.distill == 0):
        yield "--teacher is matched by KL: --recipe must be exact and --distill above 0"
    if args.recipe == "two-step" and (args.rank == 0 or args.layers != "routers" or args.sets):
        yield "--recipe two-step trains routers, then LoRA: --rank must be 1 or more and --layers routers"
    check_not_taken(args)
    yield from _of_folder(args)


def _of_folder(args: argparse.Namespace) -> Iterator[str]:
    """What is in --out and no run's: its files would be removed, cut or written over."""
    inputs = [*args.data, *args.prompts, *args.valid, *args.search_data, *filter(None, [args.sets, args.model])]
    for name in FILES:
        path = os.path.join(args.out, name)
        for given in inputs:
            if os.path.exists(path) and os.path.exists(given) and os.path.samefile(path, given):
                yield f"--out {args.out}: a run writes a {name} there, in place of your {given}; choose another folder"
        if name in BEGINNINGS and not _begins(path, BEGINNINGS[name]):
            yield f"--out {args.out} has a {name} that no run wrote, and this one would replace it; choose another folder"


def _begins(path: str, with_: bytes) -> bool:
    """Whether a file begins so, as far as it goes; also where there is none."""
    try:
        with open(path, "rb") as file:
            return with_.startswith(file.read(len(with_)))
    except FileNotFoundError:
        return True


def _of_data(args: argparse.Namespace) -> Iterator[str]:
    if bool(args.data) == bool(args.prompts):
        yield "give --data with prompts and responses, or --prompts to be answered by the dense model: one of the two"
    if args.prompts and os.path.isdir(args.model):
        yield f"--prompts are answered through llama.cpp: --model must be a GGUF file, {args.model} is a folder"
    if args.prompts and (args.recipe == "two-step" or args.distill == 0):
        yield "--prompts are learned by KL: --recipe must be exact and --distill above 0"
    if args.teacher == RECORDED and not args.prompts:
        yield "--teacher answers is what was recorded with answers to --prompts; --data has none: name a run, or base"
    if "self" in args.prompts and len(args.prompts) > 1:
        yield "--prompts self stands alone: the model writes all of them"
    if args.samples and not args.prompts:
        yield "--samples draws answers to --prompts; --data brings its own"


def _of_layers(args: argparse.Namespace) -> Iterator[str]:
    if args.start and (args.layers != "routers" or args.max_share == 0):
        yield "--start is where routers start: --layers must be routers and --max-share above 0"
    if args.sets and (args.layers != "routers" or args.start or args.max_share == 0):
        yield "--sets says which layers are skipped: it goes with neither --layers nor --start, and --max-share is above 0"
    if args.sets and args.skip is not None:
        yield "--sets goes without --skip: how much each prompt skips is found by `first-cpp calibrate --sets` after the merge"
    layers = "sets" if args.sets else args.layers if isinstance(args.layers, str) else "given"
    if args.search_data and order_to_find(layers, args.start, args.init is not None, args.max_share) is None:
        yield "--search-data is to order layers on, and this run orders none: with --init it needs --start"


def _of_lora(args: argparse.Namespace) -> Iterator[str]:
    if args.sets and args.rank == 0:
        yield "--sets trains the LoRA that makes up for them: --rank must be 1 or more"
    if args.init and args.rank == 0:
        yield "--init starts from an earlier LoRA: --rank must be that LoRA's, not 0"
    if args.quantize and args.rank == 0:
        yield "--quantize rounds the sum of base and LoRA: --rank must be 1 or more"
