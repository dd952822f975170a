"""Paired bootstrap: the same questions are drawn again and again for every row, and the scores compared (Koehn 2004)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import Metric, Numbers

Draws = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value and the 95 % interval of its bootstrap draws."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, draws: Draws) -> Interval:
        low, high = np.percentile(draws, [2.5, 97.5])
        return cls(value, float(low), float(high))


class Scores:
    """Scores of every row on every task, and of every draw."""

    def __init__(self, n_draws: int, seed: int) -> None:
        self._n_draws, self._seed = n_draws, seed
        self._counts: dict[str, npt.NDArray[np.float64]] = {}
        self.value: dict[tuple[str, str], float] = {}
        self.draws: dict[tuple[str, str], Draws] = {}

    def add(self, row: str, task: str, metric: Metric, numbers: Numbers) -> None:
        """Score one row on one task by its first metric; the draws are the same for all rows of a task."""
        n = len(numbers)
        if task not in self._counts:
            rng = np.random.default_rng([self._seed, len(self._counts)])
            self._counts[task] = rng.multinomial(n, np.full(n, 1 / n), self._n_draws).astype(np.float64)
        self.value[row, task] = metric.score(numbers.sum(axis=0), n)
        totals = self._counts[task] @ numbers
        self.draws[row, task] = np.array([metric.score(total, n) for total in totals])

    def ratio(self, row: str, to: str, tasks: Sequence[str]) -> Interval:
        """Score of `row` over score of `to`, mean over tasks. A task on which `to` scores 0 counts as 0."""
        value = np.mean([_over(self.value[row, task], self.value[to, task]) for task in tasks])
        return Interval.of(float(value), self._ratio_draws(row, to, tasks))

    def lead(self, row: str, other: str, to: str, tasks: Sequence[str]) -> Interval:
        """By how much `row`'s ratio is above `other`'s."""
        value = self.ratio(row, to, tasks).value - self.ratio(other, to, tasks).value
        return Interval.of(value, self._ratio_draws(row, to, tasks) - self._ratio_draws(other, to, tasks))

    def _ratio_draws(self, row: str, to: str, tasks: Sequence[str]) -> Draws:
        parts = []
        for task in tasks:
            below = self.draws[to, task]
            parts.append(np.divide(self.draws[row, task], below, out=np.zeros_like(below), where=below > 0))
        found: Draws = np.mean(parts, axis=0)
        return found


def _over(value: float, by: float) -> float:
    return value / by if by > 0 else 0.0


def numbers_by_task(
    metrics: Mapping[str, Sequence[Metric]],
    tasks: Sequence[str],
    given: Sequence[Mapping[str, Any]],
    references: Sequence[Sequence[str]],
) -> dict[str, list[tuple[Metric, Numbers]]]:
    """For every task the numbers of its metrics, over its own questions. given: the records of a row's answers."""
    found = {}
    for task, of_task in metrics.items():
        here = [i for i, name in enumerate(tasks) if name == task]
        expected = [references[i] for i in here]
        found[task] = [(one, one.numbers([given[i].get(one.reads) for i in here], expected)) for one in of_task]
    return found
