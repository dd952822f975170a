"""How many layers a prompt can spare: the predicted cost of every level, and the level that a tolerance allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..gguf.cost_probes import CostProbes


@dataclass(frozen=True)
class Prediction:
    """What each level is predicted to cost one prompt.

    levels: layers skipped, ascending. costs: nats a token, none below the one before. sets: of each level the number of the set
    that the prompt would take.

    >>> prediction = Prediction(levels=(1, 2, 3), costs=(0.01, 0.04, 0.2), sets=(0, 1, 2))
    >>> prediction.within(0.05), prediction.within(0.001)  # the third layer more costs 0.16
    (1, None)
    """

    levels: tuple[int, ...]
    costs: tuple[float, ...]
    sets: tuple[int, ...]

    def within(self, tolerance: float) -> int | None:
        """The index of the level that costs least where every skipped layer is worth `tolerance`; None where dense does.

        So each layer more costs at most the tolerance, on average from any smaller level on; of equal ones the largest.
        """
        pairs = zip(self.levels, self.costs, strict=True)
        worth = [tolerance * level - cost if math.isfinite(cost) else -math.inf for level, cost in pairs]
        best = max(range(len(worth)), key=lambda index: (worth[index], index))
        return best if worth[best] >= 0 else None

    def cost_of(self, level: int) -> float | None:
        """The cost of a level, 0 of none skipped; None for a number of layers that is no level."""
        return 0.0 if level == 0 else dict(zip(self.levels, self.costs, strict=True)).get(level)


def predict(probes: CostProbes, log_costs: npt.NDArray[np.float64]) -> Prediction:
    """log_costs: of each set, float64 [n_set]; infinite where it is not known."""
    levels = probes.levels
    sets = [_set_of_level(probes, log_costs, level) for level in levels]
    highest = np.maximum.accumulate(log_costs[sets])
    costs = tuple(math.exp(value) if value < 700 else math.inf for value in highest.tolist())
    return Prediction(levels, costs, tuple(sets))


def _set_of_level(probes: CostProbes, log_costs: npt.NDArray[np.float64], level: int) -> int:
    """The set for all prompts, unless another is surely cheaper."""
    of_level = probes.of_level(level)
    best = min(of_level, key=lambda number: log_costs[number])
    return best if log_costs[best] < log_costs[of_level[0]] - probes.margin else of_level[0]


def in_words(probes: CostProbes, cost: float) -> str:
    """What a cost means to a reader of the answer.

    >>> from first_cpp.gguf.cost_probes import LayerSet, TolerancePoint
    >>> table = (TolerancePoint(0.05, 0.1, kl=0.05, fidelity=0.95),)
    >>> probes = CostProbes((LayerSet(1),), (0,), np.zeros((1, 1, 8)), np.zeros(1), 1e-5, 0.05, 0.95, 0.0, (), table)
    >>> in_words(probes, 0.03), in_words(probes, 0.0001), in_words(probes, 0.9)
    ('to change about 3 in 100 words', 'to change fewer than 1 in 100 words', 'to change more than 5 in 100 words')
    """
    changed = probes.changed(cost)
    if changed is None or not math.isfinite(cost):
        return f"to cost {cost:.3g} nats a token"
    number = round(100 * changed)
    if number < 1:
        return "to change fewer than 1 in 100 words"
    beyond = cost > max(point.kl for point in probes.table)
    return f"to change {'more than' if beyond else 'about'} {number} in 100 words"


# -- what a dial from 0, dense, to 1 stands for where a fidelity is held ------------------------------------------------


def tolerance_of(probes: CostProbes, dial: float) -> float:
    """The tolerance whose mean share is the dial's part of the largest in the table; without one, of twice the file's own."""
    if not probes.table:
        return 2 * probes.tolerance * dial
    found = probes.tolerance_for(dial * max(point.share for point in probes.table))
    return found if found is not None and dial > 0 else 0.0


def dial_of(probes: CostProbes) -> float:
    """Where the dial stands for the file's own tolerance."""
    most = max((point.share for point in probes.table), default=0.0)
    return min(1.0, probes.mean_share(probes.tolerance) / most) if most else 0.5
