"""What a run is about to do and about how long it takes, measured on one of its batches; and how it ended."""

from __future__ import annotations

import argparse
import os
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from ..cli.duration import in_words
from ..cli.next_commands import next_commands
from ..gguf.model_file import ModelFile
from ..gguf.printable import printable
from ..gguf.quantise import NEED_MATRIX, stored_type
from ..gguf.router_format import carries_routers
from .checkpoint import steps_done
from .examples import padding_cost
from .layer_orders import MOST_EXAMPLES, N_FITTED, sample_by_task
from .phase_times import GROUP, Work, measure, phases
from .prompt_costs import predicted
from .run_progress import Phase
from .run_setup import Run
from .settings import order_to_find
from .trainer import Trainer, steps_of
from .validation import Losses, by_share, validated_shares

_NO_BREAK = "\N{NO-BREAK SPACE}"


def planned(args: argparse.Namespace, run: Run) -> list[Phase]:
    """The phases of a run with their seconds, measured on some of its examples."""
    trainer = run.trainer
    if (budget := run.budget) is not None:  # its tolerances are found anew once all examples are there
        trainer.objective.budget = budget
        budget.learn(predicted(trainer, trainer.examples[:GROUP]))
    return phases(measure(trainer, trainer.examples), work_of(args, run), trainer.objective.n_layer)


def work_of(args: argparse.Namespace, run: Run) -> Work:
    """What the run is to do."""
    trainer, s, asked = run.trainer, run.trainer.settings, run.asked
    n_train = len(trainer.examples) if asked is None else asked.n_train
    n_valid = len(run.valid) if asked is None else asked.n_valid
    n_steps = steps_of(n_train, s)[2]
    first = steps_done(args.out) if args.resume else 0
    steps_left = max(0, min(n_steps, args.stop_after or n_steps) - first)
    searched, fitted = orders_to_search(args, trainer)
    of_pool = len(trainer.search_examples) if asked is None or args.search_data else n_train
    alone = min(MOST_EXAMPLES, of_pool)
    by_task = sum(map(len, sample_by_task(trainer.search_examples, s.seed).values())) if searched > 1 else 0
    return Work(
        prompts=asked.prompt_seconds if asked else 0.0,
        answers=asked.answer_seconds if asked else 0.0,
        predicted=n_train + n_valid if run.budget is not None else 0,
        searched=alone + by_task if searched else 0,
        fitted=fitted,
        examples=round(steps_left / max(1, n_steps) * n_train * s.epochs / trainer.processes.n),
        work=statistics.mean(map(padding_cost, trainer.examples)),
        steps=steps_left,
        updates=steps_left * trainer.objective.n_passes,
        valid=-(-n_valid // trainer.processes.n),
        shares=len(validated_shares(trainer.objective)),
        validations=steps_left // args.validate if args.validate else 0,
    )


def orders_to_search(args: argparse.Namespace, trainer: Trainer) -> tuple[int, int]:
    """Orders of the layers that are searched first, and the prompts that routers are fitted on."""
    s, tasks = trainer.settings, {example.task for example in trainer.search_examples}
    if args.resume or order_to_find(s.layers, args.start, args.init is not None, s.max_share) != "search":
        return 0, 0
    by_task = s.layers == "routers" and len(tasks) > 1
    fitted = min(len(trainer.search_examples), N_FITTED * len(tasks)) if by_task else 0
    return (len(tasks) + 1 if by_task else 1), fitted


def plan(args: argparse.Namespace, run: Run, of: Sequence[Phase]) -> str:
    """Examples, steps, orders to search, time, checkpoints: lines for the user."""
    trainer, s = run.trainer, run.trainer.settings
    n = len(trainer.examples) if run.asked is None else run.asked.n_train
    first, n_steps = steps_done(args.out) if args.resume else 0, steps_of(n, s)[2]
    steps_left, (searched, _) = n_steps - first, orders_to_search(args, trainer)
    updates = f", {trainer.objective.n_passes} updates each" if trainer.objective.n_passes > 1 else ""
    seconds = sum(phase.seconds for phase in of)
    lines = [
        f"plan: {n} examples{_of_tasks(run)}",
        f"      {steps_left} step{'s' * (steps_left != 1)} of {s.batch_size * s.accumulate}{updates}"
        + (f", from step {first}" * (first > 0))
        + (f", by {trainer.processes.n} processes" * (trainer.processes.n > 1)),
        *([f"      first a search for {searched} order{'s' * (searched > 1)} of the layers"] if searched else []),
        f"      about {in_words(seconds)}; a checkpoint every {args.checkpoint:g} minutes",
        *parts(of),
        "      Ctrl-C stops after the step; the same command with --resume goes on",
    ]
    return "\n".join(lines)


def _of_tasks(run: Run) -> str:
    """How many examples there are of each task, where that is known and there are several."""
    tasks = Counter(example.task for example in run.trainer.examples)
    if run.asked is not None or len(tasks) < 2:
        return ""
    words = ", ".join(f"{printable(task, 40) or 'without a task'} {n}" for task, n in sorted(tasks.items()))
    return f" ({words})"


def parts(of: Sequence[Phase]) -> list[str]:
    """Lines that say what the time is for.

    >>> parts([Phase("dense answers", 40.0), Phase("steps", 90.0)])
    ['      dense answers 40 seconds, steps 90 seconds']
    """
    words = [f"{phase.name} {in_words(phase.seconds)}".replace(" ", _NO_BREAK) for phase in of]
    lines = textwrap.wrap(", ".join(words), 80, initial_indent=6 * " ", subsequent_indent=6 * " ")
    return [line.replace(_NO_BREAK, " ") for line in lines] if len(words) > 1 else []


def ending(args: argparse.Namespace, trainer: Trainer, losses: Losses, seconds: float) -> str:
    """What the run left, how well it does, and the next commands."""
    lora = bool(trainer.lora_weights)
    files = ["routers.safetensors", *["adapter/"] * lora, "train.json", "log.csv", "layers.png"]
    lines = [f"{args.out}: {', '.join(files)} ({in_words(seconds)})"]
    if losses:
        lines.append("validation loss by skip share: " + by_share(losses["mean"]))
    if trainer.step < trainer.n_steps:
        return "\n".join([*lines, f"step {trainer.step} of {trainer.n_steps}; the same command with --resume goes on"])
    return "\n".join([*lines, next_commands(*following(args, lora))])


def following(args: argparse.Namespace, lora: bool) -> Iterator[list[str]]:
    """The commands that come next: into a GGUF, and what that is worth. lora: whether the run trained one."""
    model = args.model if args.model.endswith(".gguf") else "model.gguf"
    first = f"{os.path.basename(model).removesuffix('.gguf')}-first.gguf"
    merged = "merged.gguf" if args.sets else first
    how = _merging(args) if lora else ["--replace"] * carries_routers(model)
    yield ["python", "-m", "convert", "--routers", args.out, "--model", model, *how, "--out", merged]
    if args.sets:  # predictors and tolerance are to be those of the trained weights
        yield ["first-cpp", "calibrate", "-m", merged, "--sets", args.sets, "--replace", "--out", first]
    yield ["first-cpp", "eval", "--model", first, "--base", model, "--data", "test.jsonl", "--out", "report"]


def _merging(args: argparse.Namespace) -> list[str]:
    """Options of convert that fold the LoRA into the weights."""
    kind = _merged_type(args)
    return ["--merge", *(["--quantize", kind] if kind else [])]


def _merged_type(args: argparse.Namespace) -> str | None:
    """The file type to merge into: the one that was rounded to, else the model's own; None where convert needs none."""
    asked: str | None = args.quantize
    if asked or not os.path.isfile(args.model):
        return asked
    kind = stored_type(ModelFile.open(args.model))
    return None if kind in ("F32", *NEED_MATRIX) else kind
