"""Training for a file's sets of layers: each prompt skips what a budget would choose for it, at a share that is drawn.

The tolerance that gives a mean share is that of the training prompts themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError
from ..gguf.router_format import load_routers
from ..gguf.routers import Base, Routers, check_base
from ..runtime.predicted_cost import Prediction
from .examples import Example


def read_sets(path: str, base: Base | None, n_layer: int) -> Routers:
    """The sets and cost probes of a calibrated file. base: the model's, where it is a GGUF.

    Raises OptionError for a file without sets, RouterError for one of another model.
    """
    routers = load_routers(path)
    if routers.kind != "sets" or routers.cost is None:
        raise OptionError(f"--sets {path} has no sets of layers; `first-cpp calibrate` writes such a file")
    if base is not None:
        check_base(routers, base, path)
    if routers.base.n_layer != n_layer:
        raise OptionError(f"--sets {path} is for {routers.base.n_layer} layers, the model has {n_layer}")
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
        self._costs, self._shares = np.zeros(1), np.zeros(1)

    def learn(self, examples: Sequence[Example]) -> None:
        """Take the distribution of costs from examples, whose predictions are known."""
        predictions = [one.prediction for one in examples if one.prediction is not None]
        costs = np.array([one.costs for one in predictions])  # [n, n_level]
        added = np.diff([0, *self.probes.levels]) / (self.n_layer * len(costs))  # to the mean share, by a prompt's next level
        order = np.argsort(costs, axis=None, kind="stable")
        self._costs = costs.reshape(-1)[order]
        self._shares = np.cumsum(np.broadcast_to(added, costs.shape).reshape(-1)[order])

    def tolerance(self, share: float) -> float:
        """The tolerance at which the examples skip a mean share; below 0, nothing skipped, for 0."""
        if share <= 0:
            return -1.0
        at = min(int(np.searchsorted(self._shares, share - 1e-9)), len(self._costs) - 1)
        return float(self._costs[at : at + 2].mean())  # between two prompts: rounding decides for neither

    def skipped_layers(self, predictions: Sequence[Prediction], share: float) -> Tensor:
        """The layers that each prompt skips where all skip `share` on average: bool [b, n_layer]."""
        tolerance = self.tolerance(share)
        skipped = torch.zeros(len(predictions), self.n_layer, dtype=torch.bool)
        for row, prediction in enumerate(predictions):
            level = prediction.within(tolerance)
            if level is not None:
                skipped[row, list(self.probes.sets[prediction.sets[level]].layers)] = True
        return skipped
