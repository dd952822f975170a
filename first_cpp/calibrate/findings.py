"""From costs that were measured to what a user wants to know: the calibration, its table and its one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..gguf.cost_probes import LayerSet, TolerancePoint
from ..gguf.routers import Base
from ..streams.cost import AGREE, KL, SURPRISE
from .budget import Ints, Outcomes, at_mean, holding_level, holding_tolerance, pick_sets, tolerance_at, within
from .calibration import Calibration
from .given_sets import numbered
from .probes import LEAST_COST, Floats64, fit, interpolate, interpolated, monotone
from .procedure import SEARCHED, Measured

TABLE_POINTS = 12
"""Tolerances in the table that goes into the file."""


MARGINS = (0.0, 0.1, 0.2, 0.4, 0.7)
NEVER = 1e9
"""A margin that no prediction reaches: every prompt takes the first set of a level."""


@dataclass(frozen=True)
class Row:
    """One way to skip layers, on prompts kept out of all fits. layers: skipped on average. kl: nats a token. perplexity: of the
    dense answers. speed_up: measured, None on a busy machine; byte_limit: if decoding took as long as reading its bytes. Both
    are over dense."""

    system: str
    layers: float
    kl: float
    fidelity: float
    perplexity: float
    speed_up: float | None
    byte_limit: float


@dataclass(frozen=True)
class Speed:
    """Seconds of a decoding step, and bytes that it reads, with 0, 1, 2 ... layers skipped, which count as equally large.

    seconds: None where the machine was too busy to tell.
    """

    seconds: Floats64 | None
    read_bytes: Floats64

    def of(self, chosen: Ints) -> tuple[float | None, float]:
        """Speed-up and byte limit over dense where prompts skip these numbers of layers."""
        limit = float(self.read_bytes[0] / self.read_bytes[chosen].mean())
        return None if self.seconds is None else float(self.seconds[0] / self.seconds[chosen].mean()), limit


INCREDIBLE = 1.1
"""A speed-up beyond the limit by bytes by more than this was slowed where nothing is skipped: by other processes."""


def too_fast(seconds: Floats64, read_bytes: Floats64) -> bool:
    """Whether steps got faster by skipping than bytes can explain.

    >>> too_fast(np.array([4.0, 3.0]), np.array([8.0, 6.0])), too_fast(np.array([4.0, 2.0]), np.array([8.0, 6.0]))
    (False, True)
    """
    return bool((seconds[0] / seconds > INCREDIBLE * read_bytes[0] / read_bytes).any())


@dataclass(frozen=True)
class Findings:
    """calibration: what goes into a file. rows: the table. r2: of the probes. n_kept_out: prompts the table stands on."""

    calibration: Calibration
    rows: tuple[Row, ...]
    r2: float
    n_kept_out: int


def outcomes(measured: Measured, kind: str, which: npt.NDArray[np.bool_]) -> Outcomes:
    """What every level from 0 to the last measured one does on some prompts, interpolated between measured ones."""
    points = (0, *measured.levels)
    levels = tuple(range(points[-1] + 1))
    costs = np.concatenate([measured.costs["dense"][which], measured.costs[kind][which]], axis=1)  # [n, n_point, 3]
    kl, agree, surprise = (interpolated(costs[:, :, column], points, levels) for column in (KL, AGREE, SURPRISE))
    return Outcomes(levels, kl, agree, surprise)


@dataclass(frozen=True)
class Predicted:
    """What the probes say of prompts, and what a margin makes of it.

    log_cost: [n_order, n, n_level]. real: what each order's sets really do.
    """

    log_cost: Floats64
    real: tuple[Outcomes, ...]

    def with_margin(self, margin: float) -> tuple[Floats64, Outcomes]:
        """The predicted cost of each level, [n, n_level], not falling, and what levels do, with the sets that are picked."""
        pick = pick_sets(self.log_cost, margin)
        cost = np.exp(monotone(np.take_along_axis(self.log_cost, pick[None], axis=0)[0]))
        return cost, Outcomes.picked(self.real, np.hstack([np.zeros((len(pick), 1), np.int64), pick]))

    def oracle(self) -> tuple[Floats64, Outcomes]:
        """The same from the real costs, which nobody knows before."""
        truth = Predicted(np.log(np.maximum(np.stack([one.kl[:, 1:] for one in self.real]), LEAST_COST)), self.real)
        return truth.with_margin(0.0)


def conclude(
    measured: Measured,
    speed: Speed,
    base: Base,
    norm_eps: float,
    skippable: Sequence[bool],
    fidelity: float,
    origin: dict[str, object],
) -> Findings:
    """Fit the probes, choose margin, tolerance and share, and make the table."""
    kept, fitted = measured.kept_out, ~measured.kept_out
    levels = range(1, measured.levels[-1] + 1)
    kinds = [name for name in SEARCHED if name in measured.costs]
    costs = np.concatenate([measured.costs[kind][fitted][:, :, KL] for kind in kinds], axis=1)
    coarse = fit(measured.hidden[fitted], costs, range(measured.hidden.shape[1]))
    by_kind = [interpolate(part, measured.levels, levels) for part in coarse.split(len(kinds))]
    log_cost = np.stack([probes.log_cost(measured.hidden[kept]) for probes in by_kind])
    predicted = Predicted(log_cost, tuple(outcomes(measured, kind, kept) for kind in kinds))
    margin = choose_margin(predicted)
    cost, real = predicted.with_margin(margin)
    tolerance = holding_tolerance(cost, real, fidelity)
    new = outcomes(measured, kinds[0], ~measured.in_search)  # the search chose the sets on the others
    used = len(kinds) if margin < NEVER else 1
    sets = numbered(measured.given) or sets_of_orders(measured.orders[:used], levels)
    calibration = Calibration(
        base=base,
        sets=tuple(one for _, _, one in sets),
        read=tuple(row for row in coarse.read if row < base.n_layer),
        last=tuple(row - base.n_layer for row in coarse.read if row >= base.n_layer),
        weight=np.stack([by_kind[kind].weight[k - 1] for k, kind, _ in sets]),
        bias=np.array([by_kind[kind].bias[k - 1] for k, kind, _ in sets], np.float32),
        norm_eps=norm_eps,
        order=measured.orders[0],
        skippable=tuple(skippable),
        fidelity=fidelity,
        tolerance=tolerance,
        share=holding_level(new, fidelity) / base.n_layer,
        margin=margin,
        table=_table(cost, real, base.n_layer),
        origin={**origin, "r2": round(coarse.r2, 3), "kept_out": int(kept.sum()), "prompts": len(kept)},
    )
    rows = _rows(measured, predicted, margin, tolerance, speed)
    return Findings(calibration, rows, coarse.r2, int(kept.sum()))


def sets_of_orders(orders: Sequence[Sequence[int]], levels: Sequence[int]) -> list[tuple[int, int, LayerSet]]:
    """Level, number of the order and layers of each set that orders give, those of later orders where they differ."""
    return [
        (k, kind, LayerSet(k, tuple(sorted(order[:k]))))
        for k in levels
        for kind, order in enumerate(orders)
        if kind == 0 or set(order[:k]) != set(orders[0][:k])
    ]


def choose_margin(predicted: Predicted) -> float:
    """The margin under which the levels cost least, at every mean share; NEVER where other sets do not surely pay."""

    def costs(margin: float) -> Floats64:
        cost, real = predicted.with_margin(margin)
        rows = np.arange(len(cost))
        found: Floats64 = np.mean([real.kl[rows, at_mean(cost, real.levels, k)] for k in real.levels[1:]], axis=0)
        return found

    static = costs(NEVER)
    gains = {margin: static - costs(margin) for margin in MARGINS}
    best = max(MARGINS, key=lambda margin: float(gains[margin].mean()))
    error = float(gains[best].std(ddof=1)) / len(static) ** 0.5
    return best if float(gains[best].mean()) > error else NEVER


def _table(predicted: Floats64, real: Outcomes, n_layer: int) -> tuple[TolerancePoint, ...]:
    """What tolerances give that skip up to all levels on average."""
    found = {}
    for mean in real.levels[-1] * np.linspace(0, 1, TABLE_POINTS) ** 1.5:  # closer together where little is skipped
        tolerance = tolerance_at(predicted, real.levels, float(mean))
        layers, kl, fidelity, _ = real.of(within(predicted, real.levels, tolerance))
        found[tolerance] = TolerancePoint(tolerance, layers / n_layer, kl, fidelity)
    return tuple(found[tolerance] for tolerance in sorted(found))


def _rows(measured: Measured, predicted: Predicted, margin: float, tolerance: float, speed: Speed) -> tuple[Row, ...]:
    alone_cost, alone = predicted.with_margin(NEVER)
    cost, real = predicted.with_margin(margin)
    true_cost, best = predicted.oracle()
    n = len(cost)
    rows = [_row("dense", real, np.zeros(n, np.int64), speed)]
    for k in measured.levels:
        uniform = np.full(n, k)
        others = {kind: outcomes(measured, kind, measured.kept_out) for kind in measured.costs if kind != "dense"}
        rows += [_row(kind, other, uniform, speed) for kind, other in others.items()]
        if margin < NEVER:
            rows.append(_row("sets", real, uniform, speed))
            rows.append(_row("budget, one set", alone, at_mean(alone_cost, real.levels, k), speed))
        rows.append(_row("budget", real, at_mean(cost, real.levels, k), speed))
        rows.append(_row("oracle", best, at_mean(true_cost, real.levels, k), speed))
    rows.append(_row("recommended", real, within(cost, real.levels, tolerance), speed))
    return tuple(rows)


def _row(system: str, real: Outcomes, chosen: Ints, speed: Speed) -> Row:
    layers, kl, fidelity, surprise = real.of(chosen)
    return Row(system, layers, kl, fidelity, float(np.exp(surprise)), *speed.of(chosen))


LEAST_GAIN = 1.01
"""A speed-up below it is within what measuring leaves open."""
FEW = 20
"""A verdict on fewer prompts says that it may change."""


def sentence(found: Findings) -> str:
    """What a user must hear, in one sentence; a second one where it stands on few prompts."""
    one, target = found.rows[-1], found.calibration.fidelity
    n_layer = found.calibration.base.n_layer
    if one.layers > 0:
        said = f"At fidelity {target:g} this model skips {one.layers / n_layer:.0%} of its layers on average, {_gain(one)}."
    else:
        least = next(row for row in found.rows if row.system == "searched")
        said = (
            f"This model cannot spare layers at fidelity {target:g}: with one of {n_layer} skipped, {least.fidelity:.3f} is "
            f"left, {_gain(least)}."
        )
    few = f" That rests on {found.n_kept_out} prompts: with more --minutes it may change." if found.n_kept_out < FEW else ""
    return said + few


def _gain(row: Row) -> str:
    if row.speed_up is None:
        return f"at most {row.byte_limit:.2f} times as fast (this machine is too busy to measure it)"
    if row.speed_up < LEAST_GAIN:
        return "which gains no speed worth the name"
    return f"{row.speed_up:.2f} times as fast (byte limit {row.byte_limit:.2f})"
