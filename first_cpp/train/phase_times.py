"""About how long a run takes, phase by phase, from what one of its batches takes on this machine."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .batch import Batch, collate
from .examples import Example, micro_batches, padding_cost
from .prompt_costs import predicted
from .run_progress import ANSWERS, FITTING, ORDERS, PREDICTIONS, PROMPTS, STEPS, VALIDATION, Phase
from .trainer import Trainer

TRIED_AGAIN = 3
"""How often a search tries a layer for each one that it finds, beside the first round over all."""
GROUP = 8
"""Examples that are measured."""
WARM = 1.0
"""What takes fewer seconds is measured again: the first time is slower."""
SCORED = 200
"""Prompts whose keep scores a run without validation reads at its end."""


@dataclass(frozen=True)
class Pace:
    """Seconds. prompt, answer: to read an example's, without gradients. step: all of its passes, forward and backward.

    update: of the weights by the optimizer, after each pass over a batch; rounding: after a step. work: `padding_cost` of the
    example measured, a mean.
    """

    prompt: float
    answer: float
    step: float
    update: float
    rounding: float
    work: float


@dataclass(frozen=True)
class Work:
    """What is to be done. prompts, answers: seconds of those that the dense model is to write. examples, work: that steps read,
    repeats counted, and their mean `padding_cost`. steps, updates: of the weights. validations: during the steps, beside the
    last.

    shares: that are validated. searched: examples of all searches for an order of the layers; fitted: prompts that routers are
    fitted on. predicted: prompts whose costs are predicted.
    """

    prompts: float = 0.0
    answers: float = 0.0
    predicted: int = 0
    searched: int = 0
    fitted: int = 0
    examples: int = 0
    steps: int = 0
    work: float = 0.0
    updates: int = 0
    valid: int = 0
    shares: int = 0
    validations: int = 0


def phases(pace: Pace, work: Work, n_layer: int) -> list[Phase]:
    """The phases of a run, each with its seconds; those that take none are not among them.

    >>> pace = Pace(prompt=1.0, answer=0.5, step=4.0, update=0.25, rounding=0.5, work=100.0)
    >>> phases(pace, Work(answers=20.0, examples=10, work=200.0, steps=2, updates=8, valid=4, shares=2), 6)
    [Phase(name='dense answers', seconds=20.0), Phase(name='steps', seconds=83.0), Phase(name='validation', seconds=8.0)]
    """
    larger = work.work / pace.work if pace.work else 1.0
    validation = work.valid * (pace.prompt + work.shares * pace.answer)
    tries = n_layer * (1 + TRIED_AGAIN / 2) / 2  # a layer is tried from itself on: half a pass
    scores = 0.0 if work.valid else min(SCORED, work.examples) * pace.prompt
    found = [
        Phase(PROMPTS, work.prompts),
        Phase(ANSWERS, work.answers),
        Phase(PREDICTIONS, work.predicted * pace.prompt),
        Phase(ORDERS, work.searched * (pace.prompt + tries * pace.answer)),
        Phase(FITTING, work.fitted * pace.prompt),
        Phase(
            STEPS,
            work.examples * larger * pace.step
            + work.updates * pace.update
            + work.steps * pace.rounding
            + work.validations * validation,
        ),
        Phase(VALIDATION, validation + scores),
    ]
    return [phase for phase in found if phase.seconds > 0]


def measure(trainer: Trainer, sample: Sequence[Example]) -> Pace:
    """The pace of a run, from some of its examples of middling length. Neither weights nor random numbers are changed."""
    by_cost = sorted(sample, key=padding_cost)
    middle = len(by_cost) // 2
    around = by_cost[max(0, middle - GROUP // 2) : middle + GROUP // 2] or by_cost
    group = micro_batches(around, trainer.settings.part_tokens)[0]
    if trainer.objective.budget is not None:
        group = predicted(trainer, group)
    batch, n = trainer.to_device(collate(group)), len(group)
    with torch.random.fork_rng(), _some_order(trainer):
        return Pace(
            prompt=_seconds(lambda: _prompts(trainer, batch)) / n,
            answer=_seconds(lambda: _answers(trainer, batch)) / n,
            step=_seconds(lambda: _passes(trainer, batch)) / n,
            update=_seconds(_update(trainer)),
            rounding=_seconds(trainer.rounding.apply),
            work=statistics.mean(map(padding_cost, group)),
        )


@contextlib.contextmanager
def _some_order(trainer: Trainer) -> Iterator[None]:
    """An order of the layers, where none is found yet: which one hardly changes the time."""
    found = trainer.objective.order
    trainer.objective.order = found or range(trainer.objective.n_layer)
    try:
        yield
    finally:
        trainer.objective.order = found


def _seconds(work: Callable[[], float | None]) -> float:
    """What `work` takes; where it returns seconds, these."""
    taken = 0.0
    for _ in range(2):
        started = time.perf_counter()
        own = work()
        taken = time.perf_counter() - started if own is None else own
        if taken >= WARM:
            break
    return taken


@torch.no_grad()
def _prompts(trainer: Trainer, batch: Batch) -> None:
    with trainer.autocast():
        float(trainer.routed.prefill(batch).keep.sum())  # waits for the device


@torch.no_grad()
def _answers(trainer: Trainer, batch: Batch) -> float:
    """Seconds of the answers alone."""
    with trainer.autocast():
        prefilled = trainer.routed.prefill(batch)
        started = time.perf_counter()
        float(trainer.routed.answer_logits(prefilled).flatten()[0])
        return time.perf_counter() - started


def _passes(trainer: Trainer, batch: Batch) -> None:
    """All passes of a step over a batch; the gradients are dropped."""
    passes = trainer.objective.passes(batch, 0)
    for _ in range(trainer.objective.n_passes):
        with trainer.autocast():
            loss, _ = next(passes)
        if loss.requires_grad:
            trainer.accelerator.backward(loss)
        float(loss.detach())
    trainer.optimizer.zero_grad(set_to_none=True)


def _update(trainer: Trainer) -> Callable[[], None]:
    """An update of copies of the weights."""
    copies = [torch.nn.Parameter(copy.deepcopy(p.detach())) for p in trainer.parameters]
    for p in copies:
        p.grad = torch.zeros_like(p)
    optimizer = torch.optim.AdamW(copies)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(copies, 1.0)
        optimizer.step()

    return update
