"""What a run is about to do and about how long it takes, measured on one of its batches; and how it ended."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence

import torch

from ..cli.duration import in_words
from .batch import collate
from .examples import Example, micro_batches, padding_cost
from .layer_orders import MOST_EXAMPLES, N_TOKENS
from .settings import order_to_find
from .trainer import Trainer
from .validation import SHARES, Losses, by_share

BACKWARD = 1.3
"""Seconds of a backward pass for one of a forward pass over the answers."""
TRIED_AGAIN = 3
"""How often a search tries a layer for each one that it finds, beside the first round over all."""


def plan(args: argparse.Namespace, trainer: Trainer, valid: Sequence[Example]) -> str:
    """Examples, steps, orders to search, time, checkpoints: lines for the user."""
    s, tasks = trainer.settings, Counter(example.task for example in trainer.examples)
    of_tasks = ", ".join(f"{task or 'without a task'} {n}" for task, n in sorted(tasks.items()))
    several = f" ({of_tasks})" if len(tasks) > 1 else ""
    todo = trainer.n_steps - trainer.step
    kind = order_to_find(s.layers, args.start, args.init is not None, s.max_share) if not args.resume else None
    searched = (len(tasks) + 1 if len(tasks) > 1 and s.layers == "routers" else 1) if kind == "search" else 0
    updates = f", {trainer.objective.n_passes} updates each" if trainer.objective.n_passes > 1 else ""
    lines = [
        f"plan: {len(trainer.examples)} examples{several}",
        f"      {todo} step{'s' * (todo != 1)} of {s.batch_size * s.accumulate}{updates}"
        + (f", from step {trainer.step}" * (trainer.step > 0))
        + (f", by {trainer.processes.n} processes" * (trainer.processes.n > 1)),
        *([f"      first a search for {searched} order{'s' * (searched > 1)} of the layers"] if searched else []),
        f"      about {in_words(estimate(trainer, valid, searched))}; a checkpoint every {args.checkpoint:g} minutes",
        "      Ctrl-C stops after the step; the same command with --resume goes on",
    ]
    return "\n".join(lines)


@torch.no_grad()
def estimate(trainer: Trainer, valid: Sequence[Example], n_searched: int) -> float:
    """Seconds of what is left of a run: its steps, by one batch of middling length, the search of orders, the validation."""
    by_cost = sorted(trainer.examples, key=padding_cost)
    middle = len(by_cost) // 2
    group = micro_batches(by_cost[max(0, middle - 4) : middle + 4] or by_cost, trainer.settings.part_tokens)[0]
    batch = trainer.to_device(collate(group))
    with trainer.autocast():
        started = time.perf_counter()
        prefilled = trainer.routed.prefill(batch)
        prompts = time.perf_counter() - started
        trainer.routed.answer_logits(prefilled)
        answers = time.perf_counter() - started - prompts
    one_prompt, one_answer = prompts / len(group), answers / len(group)
    passes = trainer.objective.n_passes
    n = (trainer.n_steps - trainer.step) * trainer.settings.batch_size * trainer.settings.accumulate
    per_search = min(MOST_EXAMPLES, N_TOKENS / max(1.0, statistics.mean(len(one.response) for one in group)))
    tries = trainer.objective.n_layer * (1 + TRIED_AGAIN / 2) / 2  # a layer is tried from itself on: half a pass
    total = n * (one_prompt + passes * (1 + BACKWARD) * one_answer)
    total += len(valid) * (one_prompt + len(SHARES) * one_answer)
    return total / trainer.processes.n + n_searched * per_search * (one_prompt + tries * one_answer)


def ending(args: argparse.Namespace, trainer: Trainer, losses: Losses, seconds: float) -> str:
    """What the run left, how well it does, and the next commands."""
    files = "routers.safetensors, adapter/, train.json, log.csv, layers.png"
    lines = [f"{args.out}: {files} ({in_words(seconds)})"]
    if losses:
        lines.append("validation loss by skip share: " + by_share(losses["mean"]))
    if trainer.step < trainer.n_steps:
        return "\n".join([*lines, f"step {trainer.step} of {trainer.n_steps}; the same command with --resume goes on"])
    model = args.model if args.model.endswith(".gguf") else "model.gguf"
    first = f"{os.path.basename(model).removesuffix('.gguf')}-first.gguf"
    quantize = f" --quantize {args.quantize}" if args.quantize else ""
    merged = "merged.gguf" if args.sets else first
    following = [f"  python -m convert --routers {args.out} --model {model} --merge{quantize} --out {merged}"]
    if args.sets:  # predictors and tolerance are to be those of the trained weights
        following.append(f"  first-cpp calibrate -m {merged} --replace --out {first}")
    following.append(f"  first-cpp eval --model {first} --base {model} --data test.jsonl --out report")
    return "\n".join([*lines, "next:", *following] if trainer.lora_weights else lines)
