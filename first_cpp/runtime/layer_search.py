"""An order of the layers found by search: those that answers miss least, one after another.

Knows no model: costs come from a `Skipping`. `first-cpp calibrate` asks llama.cpp, `first-cpp train` PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Costs = npt.NDArray[np.float64]


class Skipping(Protocol):
    """Examples whose answers skip some layers already, to be tried with one more."""

    n_examples: int

    def cost(self, n: int) -> Costs:
        """Of the first `n` examples with the layers skipped so far: float64 [n]."""

    def without(self, layer: int, n: int) -> Costs:
        """Of the first `n` examples with one more layer skipped: float64 [n]."""

    def skip(self, layer: int) -> None:
        """Skip one more layer from now on."""


CLOSE = 1.5
"""Standard errors of a paired difference within which two layers are too close to call on the examples at hand."""
RIVALS = 4
"""Layers that are at most compared on more examples."""


def removal_order(
    skipping: Skipping,
    layers: Sequence[int],
    most: int,
    first: int | None = None,
    chosen: Callable[[int], object] = lambda _layer: None,
    tried: Callable[[], object] = lambda: None,
    enough: Callable[[], bool] = lambda: False,
) -> list[int]:
    """All of `layers`, in the order in which skipping them costs the least.

    Greedy: to the layers skipped so far comes the one without which the mean cost is lowest, up to `most` layers; the others
    follow by what each costs alone. Lazy: what a layer adds to the cost grows with the layers skipped, so it is tried again
    only when what it added before would make it the next. Layers are tried on the `first` examples (None: all); where two
    are too close to call, on twice as many, and so on.
    chosen: called with each layer found. tried: called after each layer tried alone. enough: whether to end the search, asked
    before each layer.

    >>> class Sums:
    ...     n_examples, so_far = 1, 0.0
    ...     alone = {0: 0.3, 1: 0.1, 2: 0.6, 3: 0.2}
    ...     def cost(self, n): return np.array([self.so_far])
    ...     def without(self, layer, n): return np.array([self.so_far + self.alone[layer]])
    ...     def skip(self, layer): self.so_far += self.alone[layer]
    >>> removal_order(Sums(), [0, 1, 2, 3], most=2)
    [1, 3, 0, 2]
    """
    n = min(first or skipping.n_examples, skipping.n_examples)
    alone = dict[int, float]()
    for layer in layers:
        alone[layer] = _added(skipping, layer, n)
        tried()
    added, order = dict(alone), list[int]()
    while len(order) < min(most, len(layers)) and not enough():
        layer = _next(skipping, added, set(alone) if not order else set(), n)
        skipping.skip(layer)
        del added[layer]
        order.append(layer)
        chosen(layer)
    return [*order, *sorted(added, key=alone.__getitem__)]


def _added(skipping: Skipping, layer: int, n: int) -> float:
    return float((skipping.without(layer, n) - skipping.cost(n)).mean())


def _next(skipping: Skipping, added: dict[int, float], fresh: set[int], n: int) -> int:
    """The layer that adds the least; `added` is brought up to date for those that were tried."""
    while (best := min(added, key=added.__getitem__)) not in fresh:
        added[best] = _added(skipping, best, n)
        fresh.add(best)
    rivals = sorted(added, key=added.__getitem__)[:RIVALS]
    while len(rivals) > 1 and n < skipping.n_examples:
        costs = {layer: skipping.without(layer, n) for layer in rivals}
        best = min(rivals, key=lambda layer: float(costs[layer].mean()))
        rivals = [layer for layer in rivals if layer == best or is_close(costs[layer], costs[best])]
        if len(rivals) > 1:
            n = min(2 * n, skipping.n_examples)
            added.update({layer: _added(skipping, layer, n) for layer in rivals})
            best = min(rivals, key=added.__getitem__)
    return best


def is_close(costs: Costs, best: Costs) -> bool:
    """Whether the examples at hand do not tell that `costs` are higher than `best`."""
    difference = costs - best
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    return float(difference.mean()) <= CLOSE * error
