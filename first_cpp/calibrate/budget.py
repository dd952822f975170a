"""How many layers each prompt skips: as many as cost no more than a tolerance each, as predicted."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TRIED = 1000
"""Tolerances that are looked at for one that holds a fidelity."""


@dataclass(frozen=True)
class Outcomes:
    """What levels really do on some prompts. levels: layers skipped, ascending, the first 0.

    kl, fidelity, surprise: [n, n_level] for each prompt at each level; at level 0: 0, 1, and the dense model's own.
    """

    levels: tuple[int, ...]
    kl: Floats64
    fidelity: Floats64
    surprise: Floats64

    @classmethod
    def picked(cls, several: Sequence[Outcomes], pick: Ints) -> Outcomes:
        """Of several kinds of sets, what each prompt's own does: pick, [n, n_level] with level 0, is the number of the kind."""
        columns = ("kl", "fidelity", "surprise")
        stacks = (np.stack([getattr(one, column) for one in several]) for column in columns)
        return cls(several[0].levels, *(np.take_along_axis(stack, pick[None], axis=0)[0] for stack in stacks))

    def of(self, chosen: Ints) -> tuple[float, float, float, float]:
        """Mean layers skipped, KL, fidelity and surprise where each prompt has the level of index `chosen`."""
        rows = np.arange(len(chosen))
        kl, fidelity, surprise = (float(values[rows, chosen].mean()) for values in (self.kl, self.fidelity, self.surprise))
        return float(np.asarray(self.levels)[chosen].mean()), kl, fidelity, surprise


def pick_sets(log_cost: Floats64, margin: float) -> Ints:
    """The number of the set that each prompt takes at each level: the first, or one predicted cheaper by more than `margin`.

    log_cost: predicted, [n_kind, n, n_level].

    >>> pick_sets(np.array([[[-1.0, -1.0]], [[-1.2, -1.6]]]), 0.5).tolist()
    [[0, 1]]
    """
    best = log_cost.argmin(axis=0)
    found: Ints = np.where(log_cost.min(axis=0) < log_cost[0] - margin, best, 0)
    return found


def within(cost: Floats64, levels: Sequence[int], tolerance: float) -> Ints:
    """The index of the level of least `cost - tolerance * layers skipped`, by prompt: as `Prediction.within`, 0 where dense is.

    At any mean share the sum of the costs is the least that there is: every prompt skips up to the same marginal cost.
    cost: [n, n_level - 1], of the levels from the second on, not falling.

    >>> within(np.array([[0.1, 0.2, 0.9], [0.3, 0.5, 0.9]]), (0, 1, 2, 3), 0.15).tolist()
    [2, 0]
    """
    worth = tolerance * np.asarray(levels) - np.hstack([np.zeros((len(cost), 1)), cost])
    found: Ints = len(levels) - 1 - worth[:, ::-1].argmax(axis=1)  # of equal ones the largest
    return found


def tolerances(cost: Floats64, levels: Sequence[int]) -> Floats64:
    """All tolerances, ascending, at which some prompt's level changes: the slopes between its levels."""
    padded, counts = np.hstack([np.zeros((len(cost), 1)), cost]), np.asarray(levels)
    lower, upper = np.triu_indices(len(counts), 1)
    slopes = (padded[:, upper] - padded[:, lower]) / (counts[upper] - counts[lower])
    found: Floats64 = np.unique(slopes) * (1 + 1e-12)  # the layer is within its own slope, whatever the rounding
    return found


def tolerance_at(cost: Floats64, levels: Sequence[int], mean: float) -> float:
    """The largest tolerance with at most `mean` layers skipped on average; 0 where each skips more."""
    slopes, counts = tolerances(cost, levels), np.asarray(levels)
    n = bisect.bisect_right(slopes, mean, key=lambda one: float(counts[within(cost, levels, float(one))].mean()))
    return float(slopes[n - 1]) if n else 0.0


def at_mean(cost: Floats64, levels: Sequence[int], mean: float) -> Ints:
    """The levels that the largest tolerance gives with at most `mean` layers skipped on average, by prompt."""
    return within(cost, levels, tolerance_at(cost, levels, mean))


def holding_tolerance(cost: Floats64, outcomes: Outcomes, target: float) -> float:
    """The largest tolerance under which these prompts have `target` fidelity on average; 0 where none has.

    Prompts that are dense under it count: their fidelity is 1.
    """
    rows, best = np.arange(len(cost)), 0.0
    for tolerance in np.unique(np.quantile(tolerances(cost, outcomes.levels), np.linspace(0, 1, TRIED), method="lower")):
        chosen = within(cost, outcomes.levels, float(tolerance))
        if chosen.any() and holds(outcomes.fidelity[rows, chosen], target):
            best = float(tolerance)
    return best


def holding_level(outcomes: Outcomes, target: float) -> int:
    """The index of the largest level at which these prompts have `target` fidelity on average, if all skip so many."""
    return max(index for index in range(len(outcomes.levels)) if index == 0 or holds(outcomes.fidelity[:, index], target))


def holds(fidelity: Floats64, target: float) -> bool:
    """Whether prompts with these fidelities have `target` on average.

    >>> holds(np.array([1.0, 0.9]), 0.95), holds(np.array([1.0, 0.89]), 0.95)
    (True, False)
    """
    return bool(fidelity.mean() >= target - 1e-9)
