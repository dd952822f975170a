"""The examples of --prompts, answered by the dense model: some before the plan of a run, the others as its first phase."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..cli.jsonl import DataError
from ..runtime.machine import physical_cores
from .dense_answers import (
    AskedPrompt,
    DenseModel,
    as_examples,
    dense_answers,
    n_written,
    own_prompts,
    read_prompts,
    unanswered,
    what_is_dropped,
)
from .examples import Example, draw
from .run_progress import ANSWERS, PROMPTS, RunProgress, Step
from .settings import Ask

N_OWN_PROMPTS = 300
"""That a model writes itself where no --limit says how many."""
SAMPLE = 16
"""Prompts, and answers, that are made before the plan: how long the others take is measured on them."""


@dataclass(frozen=True)
class Data:
    """The examples of a run: to train on, to validate on, and to order layers on (empty: the training data)."""

    train: list[Example]
    valid: list[Example]
    search: list[Example]


class AskedData:
    """The prompts of the options, or the model's own, with the dense model's answers; both are kept in --out.

    prompt_seconds, answer_seconds: what those that are missing after `sample` take, about. n_train, n_valid: prompts asked,
    each with all its answers counted.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._ask = Ask(args.samples, args.sample_temperature, args.max_tokens, args.seed)
        self._own = args.limit or N_OWN_PROMPTS if args.prompts == ["self"] else 0
        self._prompts = [] if self._own else draw(read_prompts(args.prompts), args.limit, args.seed)
        self._valid = draw(read_prompts(args.valid), args.valid_limit, 0) if args.valid else []
        each = max(1, args.samples)
        self.n_train, self.n_valid = (self._own or len(self._prompts)) * each, len(self._valid) * each
        self.prompt_seconds = self.answer_seconds = 0.0
        os.makedirs(args.out, exist_ok=True)
        self._model = DenseModel(args.model, args.out, physical_cores())

    def close(self) -> None:
        """No more is asked."""
        self._model.close()

    def sample(self) -> Data:
        """Examples to measure on: all that are answered already, and a few more, whose time is taken."""
        prompts = self._prompts
        if self._own:
            prompts = self._written_sample()
        wanted = list(dict.fromkeys([*prompts, *self._valid]))
        missing = unanswered(self._model, wanted, self._ask)
        few = [missing[i * len(missing) // SAMPLE] for i in range(SAMPLE)] if len(missing) > SAMPLE else missing
        clock = Clock()
        self._answered(few, clock)
        still = len(missing) - len(few) + max(0, self._own - len(prompts))
        self.answer_seconds = clock.seconds / max(1, len(few)) * still
        new = {*missing}
        known = [one for one in prompts if one not in new]
        return Data(self._answered([*known, *few], no_step), [], [])  # of few known ones all answers may be empty

    def _written_sample(self) -> list[AskedPrompt]:
        """Some of the prompts that the model writes, or all of them where it writes few that are usable."""
        known, clock = n_written(self._args.out), Clock()
        n = min(self._own, known + SAMPLE)
        try:
            found = self._write(n, clock)
        except DataError:  # how many it will need cannot be told from a few
            return self._write(self._own, no_step)
        self.prompt_seconds = clock.seconds / SAMPLE * (self._own - n)
        return found

    def read(self, progress: RunProgress) -> Data:
        """All of them; those that are kept are not asked for again."""
        prompts = self._write(self._own, progress.begin(PROMPTS)) if self._own else self._prompts
        step, n, n_valid = progress.begin(ANSWERS), max(1, len(prompts)), len(self._valid)
        records = self._records(prompts, lambda done, total: step(done * n, total * (n + n_valid)))
        train = as_examples(records, self._args.max_prompt)
        if dropped := what_is_dropped(records, self._args.max_prompt):
            progress.say(dropped)
        valid = self._answered(self._valid, lambda done, total: step(n * total + done * n_valid, total * (n + n_valid)))
        self.close()
        return Data(train, valid, [])

    def _write(self, n: int, step: Step) -> list[AskedPrompt]:
        return own_prompts(self._model, n, self._args.seed, step)

    def _answered(self, of: Sequence[AskedPrompt], step: Step) -> list[Example]:
        return as_examples(self._records(of, step), self._args.max_prompt) if of else []

    def _records(self, of: Sequence[AskedPrompt], step: Step) -> list[dict[str, Any]]:
        return dense_answers(self._model, of, self._ask, self._args.max_prompt + self._args.max_tokens + 1, step)


def no_step(_done: int, _total: int) -> None:
    """No progress is shown."""


class Clock:
    """A step that takes the seconds from the first to the last: the model's loading is not among them."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._first, self.seconds = now, now(), 0.0
        self._began = False

    def __call__(self, _done: int, _total: int) -> None:
        if not self._began:
            self._began, self._first = True, self._now()
        self.seconds = self._now() - self._first
