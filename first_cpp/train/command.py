"""Train routers and LoRA by the rule that inference follows: the prompt runs every
layer and chooses which layers the answer skips. The run writes
routers.safetensors, the peft adapter, train.json, log.csv and layers.png."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
import warnings
from typing import TYPE_CHECKING

from ..cli.extras import need_extra
from ..cli.model_name import find_models
from .launch import is_rank, launch, stop_with_parent
from .option_checks import check_options
from .training_options import add_arguments

if TYPE_CHECKING:
    from .run_progress import RunProgress
    from .run_setup import Run
    from .validation import Losses

__all__ = ["add_arguments", "command"]


def command(args: argparse.Namespace) -> None:
    """Train as the options say, and write what the run leaves behind.

    Raises OptionError for options that do not go together, MissingExtraError without the train extra, DataError for bad data,
    ModelFileError for a model that cannot be trained, TrainingError where training cannot go on.

    >>> parser = argparse.ArgumentParser()
    >>> add_arguments(parser)
    >>> command(parser.parse_args(["--model", "m", "--data", "d", "--out", "o", "--quantize", "Q4_0", "--rank", "0"]))
    Traceback (most recent call last):
    first_cpp.errors.OptionError: --quantize rounds the sum of base and LoRA: --rank must be 1 or more
    """
    check_options(args)
    need_extra("training", "train", "torch", "transformers", "peft", "accelerate", "matplotlib")
    find_models(args, "model")
    if args.processes > 1 and not is_rank():
        return launch(args.processes, args.out)
    stop_with_parent()
    from .run_plan import ending  # with PyTorch, which takes seconds
    from .run_setup import set_up

    _quiet_libraries()
    started = time.time()
    with contextlib.ExitStack() as stack:
        run = set_up(args, stack)
        losses = _planned_run(args, run)
    if run.trainer.processes.is_main:
        print(ending(args, run.trainer, losses, time.time() - started))
    run.trainer.processes.end()


def _planned_run(args: argparse.Namespace, run: Run) -> Losses:
    """Show the plan, carry it out and save the result."""
    from .layer_orders import start_orders
    from .result import run_record, save_result
    from .run_plan import plan, planned
    from .run_progress import Phase, RunProgress

    trainer, phases = run.trainer, list[Phase]()
    first = trainer.processes.is_main
    if first and not args.quiet:
        phases = planned(args, run)
        print(plan(args, run, phases), file=sys.stderr, flush=True)
    with RunProgress(phases, args.quiet, shown=first) as progress:
        run.read_rest(progress)
        if args.resume:
            trainer.resume()
        else:
            trainer.log.start()
            start_orders(trainer, args.start, args.init is not None, progress)
        losses = _run(args, run, progress)
        if first:
            save_result(trainer, run_record(args, trainer, losses), args.skip)
    return losses


def _run(args: argparse.Namespace, run: Run, progress: RunProgress) -> Losses:
    from .checkpoint import has_checkpoint

    trainer = run.trainer
    try:
        return trainer.run(run.valid, args.validate, args.quiet, args.stop_after, progress)
    except KeyboardInterrupt:
        if trainer.processes.is_main:
            where = f"stopped at step {trainer.step} of {trainer.n_steps}"
            how = f"with --resume goes on from the last checkpoint in {args.out}" if has_checkpoint(args.out) else "begins anew"
            print(f"{where}; the same command {how}", file=sys.stderr)
        raise


def _quiet_libraries() -> None:
    """None of the progress bars and warnings that transformers and peft have for their own users."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    from transformers import modeling_gguf_pytorch_utils as reading

    if hasattr(reading, "tqdm"):  # this one bar does not ask the logging
        reading.tqdm = functools.partial(reading.tqdm, disable=True)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of their own next releases
    warnings.filterwarnings("ignore", "Could not find a config file", UserWarning)  # peft, of a base that is a GGUF
