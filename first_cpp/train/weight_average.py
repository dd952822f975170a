"""The mean of the weights over the last updates of a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class WeightAverage:
    """A running mean of parameters, one tensor each, of the shapes of the parameters.

    >>> weight = torch.zeros(2)
    >>> average = WeightAverage([weight])
    >>> average.add()
    >>> _ = weight.fill_(1.0)
    >>> average.add()
    >>> average.apply()
    >>> weight
    tensor([0.5000, 0.5000])
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.means = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        self.count = 0

    def add(self) -> None:
        """Take in the parameters as they are now."""
        self.count += 1
        for parameter, mean in zip(self.parameters, self.means, strict=True):
            mean.lerp_(parameter.detach(), 1 / self.count)

    def load(self, means: Sequence[Tensor], count: int) -> None:
        """Go on from the means of `count` updates."""
        for mean, value in zip(self.means, means, strict=True):
            mean.copy_(value)
        self.count = count

    def apply(self) -> None:
        """Set the parameters to their means."""
        for parameter, mean in zip(self.parameters, self.means, strict=True):
            parameter.data.copy_(mean)
