"""How many layers each prompt skips: the largest level whose predicted cost is within a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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


def within(cost: Floats64, tolerance: float) -> Ints:
    """The index of the largest level whose cost is within the tolerance, by prompt; 0, nothing skipped, where none is.

    cost: [n, n_level], of the levels from the second on, not falling.

    >>> within(np.array([[0.1, 0.2, 0.4], [0.3, 0.5, 0.9]]), 0.25).tolist()
    [2, 0]
    """
    found: Ints = (cost <= tolerance).sum(axis=1)
    return found


def at_mean(cost: Floats64, levels: tuple[int, ...], mean: float) -> Ints:
    """The levels that the largest tolerance gives with at most `mean` layers skipped on average, by prompt."""
    best = np.zeros(len(cost), np.int64)
    counts = np.asarray(levels)
    for tolerance in np.unique(cost):
        chosen = within(cost, float(tolerance))
        if counts[chosen].mean() > mean:
            break
        best = chosen
    return best


def holding_tolerance(cost: Floats64, outcomes: Outcomes, target: float) -> float:
    """The largest tolerance under which these prompts have `target` fidelity on average; 0 where none has.

    Prompts whose predicted cost is above it are dense, which counts: their fidelity is 1.
    """
    rows = np.arange(len(cost))
    holding = [t for t in np.unique(cost) if holds(outcomes.fidelity[rows, within(cost, float(t))], target)]
    return float(max(holding, default=0.0))


def holding_level(outcomes: Outcomes, target: float) -> int:
    """The index of the largest level at which these prompts have `target` fidelity on average, if all skip so many."""
    return max(index for index in range(len(outcomes.levels)) if index == 0 or holds(outcomes.fidelity[:, index], target))


def holds(fidelity: Floats64, target: float) -> bool:
    """Whether prompts with these fidelities have `target` on average.

    >>> holds(np.array([1.0, 0.9]), 0.95), holds(np.array([1.0, 0.89]), 0.95)
    (True, False)
    """
    return bool(fidelity.mean() >= target - 1e-9)
