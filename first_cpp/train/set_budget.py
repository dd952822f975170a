"""Training for a file's sets of layers: each prompt skips what a budget would choose for it, at a share that is drawn.

The tolerance that gives a mean share is that of the training prompts themselves.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError
from ..gguf.router_format import load_routers
from ..gguf.routers import Base, Routers, check_base
from ..runtime.predicted_cost import Prediction
from .examples import Example

MOST_SAMPLED = 256
"""Examples that the tolerance of a share is found on."""


def read_sets(path: str, base: Base | None, n_layer: int, n_embd: int) -> Routers:
    """The sets and cost probes of a calibrated file. base: the model's, where it is a GGUF.

    Raises OptionError for a file without sets, RouterError for one of another model.
    """
    routers = load_routers(path)
    if routers.kind != "sets" or routers.cost is None:
        raise OptionError(f"--sets {path} has no sets of layers; `first-cpp calibrate` writes such a file")
    if base is not None:
        check_base(routers, base, path)
    for what, found, needed in (
        ("layers", routers.base.n_layer, n_layer),
        ("values in a hidden state", routers.base.n_embd, n_embd),
    ):
        if found != needed:
            raise OptionError(f"--sets {path} is for {found} {what}, the model has {needed}")
    return routers


class SetBudget:
    """Which set a prompt skips, and how large a share all prompts skip on average.

    routers: of the file. most: the largest share that there is a level for.
    """

    def __init__(self, routers: Routers) -> None:
        assert routers.cost is not None
        self.routers, self.probes = routers, routers.cost
        self.n_layer = routers.base.n_layer
        self.most = self.probes.levels[-1] / self.n_layer
        self._predictions: list[Prediction] = []
        self._tolerances = [0.0]

    def learn(self, examples: Sequence[Example]) -> None:
        """Take the distribution of costs from examples, or from some of them, whose predictions are known."""
        known = [one.prediction for one in examples if one.prediction is not None]
        self._predictions = random.Random(0).sample(known, min(MOST_SAMPLED, len(known)))
        costs = np.array([(0.0, *one.costs) for one in self._predictions])  # [n, 1 + n_level]
        lower, upper = np.triu_indices(costs.shape[1], 1)
        levels = np.array([0, *self.probes.levels])
        slopes = np.unique((costs[:, upper] - costs[:, lower]) / (levels[upper] - levels[lower]))
        slopes = slopes[np.isfinite(slopes)]  # a level that surely costs too much is no prompt's
        between = (slopes[1:] + slopes[:-1]) / 2  # where some prompt's level changes rounding would decide
        self._tolerances = [*between.tolist(), 2 * float(slopes[-1]) + 1]

    def tolerance(self, share: float) -> float:
        """The tolerance at which the examples skip about a mean share; below 0, nothing skipped, for 0."""
        if share <= 0:
            return -1.0
        at = bisect.bisect_left(self._tolerances, share, key=self._mean_share)
        return self._tolerances[min(at, len(self._tolerances) - 1)]

    def _mean_share(self, tolerance: float) -> float:
        taken = (one.within(tolerance) for one in self._predictions)
        return sum(0 if index is None else self.probes.levels[index] for index in taken) / self.n_layer / len(self._predictions)

    def skipped_layers(self, predictions: Sequence[Prediction], share: float) -> Tensor:
        """The layers that each prompt skips where all skip `share` on average: bool [b, n_layer]."""
        tolerance = self.tolerance(share)
        skipped = torch.zeros(len(predictions), self.n_layer, dtype=torch.bool)
        for row, prediction in enumerate(predictions):
            level = prediction.within(tolerance)
            if level is not None:
                skipped[row, list(self.probes.sets[prediction.sets[level]].layers)] = True
        return skipped
