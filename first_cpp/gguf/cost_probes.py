"""Cost probes: what skipping each set of layers will cost a prompt, predicted while the prompt is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import RouterError

MAX_SETS = 4096
"""More sets of layers than any file has a use for: a bound before sizes are multiplied."""
MAX_POINTS = 4096
"""Most rows of a tolerance table."""


@dataclass(frozen=True)
class LayerSet:
    """level: how many layers it skips, the key that sets compete under. layers: ascending; none where routers choose them."""

    level: int
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class TolerancePoint:
    """What a tolerance gave on prompts kept out of the fit: mean share of layers skipped, KL in nats a token, fidelity."""

    tolerance: float
    share: float
    kl: float
    fidelity: float


@dataclass(frozen=True)
class CostProbes:
    """Levels, their sets of layers, and linear probes of what each set costs a prompt.

    sets: by level ascending; the first of each level is the one for all prompts, another is taken only where its predicted log
    cost is lower by more than `margin`. read, last: the layers whose inputs the probes read, ascending: the mean over the
    prompt's positions, and the prompt's last position. weight: float32 [n_set, n_read + n_last, n_embd]; bias: float32 [n_set];
    the predicted log cost (nats a token) of a set is bias + sum over r of weight[r] . x_r, with x_r the mean of rmsnorm(h), or
    that of the last position, and no level is cheaper than a smaller one. norm_eps: of the rmsnorm.
    tolerance: what one more skipped layer may cost where "auto" is set. fidelity: what it keeps. table: what tolerances gave,
    ascending. order: all layers, those that are missed least first; none where routers choose the layers.

    >>> sets = (LayerSet(1, (4,)), LayerSet(2, (3, 4)))
    >>> probes = CostProbes(sets, (2,), np.zeros((2, 1, 8)), np.zeros(2), 1e-5, 0.05, 0.95, 0.0, order=())
    >>> probes.levels
    (1, 2)
    """

    sets: tuple[LayerSet, ...]
    read: tuple[int, ...]
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    norm_eps: float
    tolerance: float
    fidelity: float
    margin: float
    order: tuple[int, ...]
    table: tuple[TolerancePoint, ...] = ()
    last: tuple[int, ...] = ()

    @property
    def levels(self) -> tuple[int, ...]:
        """The numbers of layers that there are sets for, ascending."""
        return tuple(dict.fromkeys(one.level for one in self.sets))

    def of_level(self, level: int) -> tuple[int, ...]:
        """The indices of a level's sets, the one for all prompts first."""
        return tuple(index for index, one in enumerate(self.sets) if one.level == level)

    def changed(self, cost: float) -> float | None:
        """The share of an answer's tokens that a cost is expected to change, from the table; None without one."""
        points = sorted((point.kl, 1 - point.fidelity) for point in self.table)
        return _between(cost, points) if points else None

    def mean_share(self, tolerance: float) -> float:
        """The mean share of layers that a tolerance skips, from the table; 0 without one."""
        return _between(tolerance, [(point.tolerance, point.share) for point in self.table])

    def tolerance_for(self, share: float) -> float | None:
        """The tolerance that skips a mean share of layers, from the table; None where its tolerances do not reach so far."""
        points = sorted((point.share, point.tolerance) for point in self.table)
        if not points or share > points[-1][0]:
            return None
        return _between(share, points)


def _between(x: float, points: Sequence[tuple[float, float]]) -> float:
    """The value at x, linear between ascending points, the first of which is (0, 0)."""
    xs, ys = zip((0.0, 0.0), *points, strict=True)
    return float(np.interp(x, xs, ys))


def check_cost_probes(
    cost: CostProbes, n_layer: int, n_embd: int, skippable: Sequence[bool], by_routers: bool, where: str
) -> None:
    """Raise RouterError for what no cost probes may have. by_routers: the file's routers choose a level's layers.

    where: the file they come from, which the error names.
    """
    if not 0 < len(cost.sets) <= MAX_SETS:
        raise RouterError(f"{where}: first.cost.level has {len(cost.sets)} sets, expected 1 to {MAX_SETS}")
    _check_layers("first.cost.read", cost.read, n_layer, where)
    _check_layers("first.cost.last", cost.last, n_layer, where)
    if not cost.read and not cost.last:
        raise RouterError(f"{where}: first.cost.read and first.cost.last name no layer, expected at least one")
    if by_routers and (cost.order or any(one.layers for one in cost.sets)):
        raise RouterError(f"{where}: first.set.layers and first.set.order go with first.kind sets, not with routers")
    _check_levels(cost, n_layer, by_routers, where)
    if not by_routers:
        _check_sets(cost, n_layer, skippable, where)
    _check_values(cost, n_embd, where)
    _check_table(cost, where)


def _check_layers(key: str, layers: Sequence[int], n_layer: int, where: str) -> None:
    for before, layer in zip((-1, *layers), layers, strict=False):
        if not 0 <= layer < n_layer:
            raise RouterError(f"{where}: {key} names layer {layer}, expected 0 to {n_layer - 1}")
        if layer == before:
            raise RouterError(f"{where}: {key} names layer {layer} more than once")
        if layer < before:
            raise RouterError(f"{where}: {key} has layer {layer} after {before}, expected ascending layers")


def _check_levels(cost: CostProbes, n_layer: int, by_routers: bool, where: str) -> None:
    before = 0
    for one in cost.sets:
        if not 0 < one.level < n_layer:
            raise RouterError(f"{where}: first.cost.level is {one.level}, expected 1 to {n_layer - 1} layers")
        if one.level < before or (by_routers and one.level == before):
            raise RouterError(f"{where}: first.cost.level has {one.level} after {before}, expected ascending levels")
        before = one.level


def _check_sets(cost: CostProbes, n_layer: int, skippable: Sequence[bool], where: str) -> None:
    for number, one in enumerate(cost.sets):
        name = f"first.set.layers: set {number}"
        if len(one.layers) != one.level:
            raise RouterError(f"{where}: {name} has {len(one.layers)} layers, its level is {one.level}")
        _check_layers(name, one.layers, n_layer, where)
        for layer in one.layers:
            if not skippable[layer]:
                raise RouterError(f"{where}: {name} skips layer {layer}, which first.router.skippable says must stay")
        if one in cost.sets[:number]:
            raise RouterError(f"{where}: {name} is the same as set {cost.sets.index(one)}")
    if sorted(cost.order) != list(range(n_layer)):
        raise RouterError(f"{where}: first.set.order is {list(cost.order)!s:.80}, expected each of {n_layer} layers once")


def _check_values(cost: CostProbes, n_embd: int, where: str) -> None:
    shape = (len(cost.sets), len(cost.read) + len(cost.last), n_embd)
    for name, values, needed in (("weight", cost.weight, shape), ("bias", cost.bias, shape[:1])):
        if values.shape != needed:
            raise RouterError(
                f"{where}: first.cost.{name} has shape {list(values.shape)}, these sets and layers need {list(needed)}"
            )
        bad = np.argwhere(~np.isfinite(values)).tolist()
        if bad:
            found = f"{values[tuple(bad[0])]} at {bad[0]}"
            raise RouterError(f"{where}: first.cost.{name} of set {bad[0][0]} is not finite: {found}")
    with np.errstate(over="ignore"):  # |w . rmsnorm(h)| is at most |w| sqrt(n_embd); float32 must hold the sums on the way
        reach = np.linalg.norm(cost.weight.astype(np.float64), axis=2).sum(axis=1) * math.sqrt(n_embd)
    worst = int(np.argmax(total := reach + np.abs(cost.bias.astype(np.float64))))
    if total[worst] > 1e30:
        raise RouterError(f"{where}: first.cost.weight or bias of set {worst} is too large: its cost overflows float32")
    numbers = (
        ("norm_eps", cost.norm_eps, 0 < cost.norm_eps < 1, "a number above 0 and below 1"),
        ("fidelity", cost.fidelity, 0 < cost.fidelity <= 1, "a number above 0, at most 1"),
        ("tolerance", cost.tolerance, 0 <= cost.tolerance < math.inf, "a finite number of at least 0"),
        ("margin", cost.margin, 0 <= cost.margin < math.inf, "a finite number of at least 0"),
    )
    for name, value, fits, expected in numbers:  # NaN fits nowhere
        if not fits:
            raise RouterError(f"{where}: first.cost.{name} is {value}, expected {expected}")


def _check_table(cost: CostProbes, where: str) -> None:
    before = -math.inf
    for number, point in enumerate(cost.table):
        for name, most in (("tolerance", math.inf), ("share", 1), ("kl", math.inf), ("fidelity", 1)):
            value = getattr(point, name)
            if not (math.isfinite(value) and 0 <= value <= most):
                upper = f"from 0 to {most}" if most == 1 else "of at least 0"
                raise RouterError(f"{where}: first.cost.table.{name} {number} is {value}, expected a finite number {upper}")
        if point.tolerance < before:
            raise RouterError(
                f"{where}: first.cost.table.tolerance has {point.tolerance:g} after {before:g}, expected ascending tolerances"
            )
        before = point.tolerance
