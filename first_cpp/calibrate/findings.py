"""From costs that were measured to what a user wants to know: the calibration, its table and its one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..gguf.routers import Base
from .budget import Ints, Outcomes, at_mean, safe_level, safe_tolerance, within
from .calibration import Calibration, LayerSet, TolerancePoint
from .cost import AGREE, KL, SURPRISE
from .probes import Floats64, fit, interpolate, interpolated, monotone
from .procedure import Measured

TABLE_POINTS = 12
"""Tolerances in the table that goes into the file."""


@dataclass(frozen=True)
class Row:
    """One way to skip layers, on prompts kept out of all fits. layers: skipped on average. kl: nats a token. perplexity: of the
    dense answers. speed_up: measured, byte_limit: if decoding took as long as reading its bytes; both over dense."""

    system: str
    layers: float
    kl: float
    fidelity: float
    perplexity: float
    speed_up: float
    byte_limit: float


@dataclass(frozen=True)
class Speed:
    """Seconds of a decoding step, and bytes that it reads, with 0, 1, 2 ... layers skipped, which count as equally large."""

    seconds: Floats64
    read_bytes: Floats64

    def of(self, chosen: Ints) -> tuple[float, float]:
        """Speed-up and byte limit over dense where prompts skip these numbers of layers."""
        return (
            float(self.seconds[0] / self.seconds[chosen].mean()),
            float(self.read_bytes[0] / self.read_bytes[chosen].mean()),
        )


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


def conclude(
    measured: Measured,
    speed: Speed,
    base: Base,
    norm_eps: float,
    skippable: Sequence[bool],
    fidelity: float,
    origin: dict[str, object],
) -> Findings:
    """Fit the probes, choose tolerance and share, and make the table."""
    kept, fitted = measured.kept_out, ~measured.kept_out
    levels = range(1, measured.levels[-1] + 1)
    coarse = fit(measured.hidden[fitted], measured.costs["searched"][fitted][:, :, KL], range(base.n_layer))
    probes = interpolate(coarse, measured.levels, levels)
    real = outcomes(measured, "searched", kept)
    predicted = np.exp(monotone(probes.log_cost(measured.hidden[kept])))
    tolerance = safe_tolerance(predicted, real, fidelity)
    new = outcomes(measured, "searched", ~measured.in_search)  # the search chose the sets on the others
    share = safe_level(new, fidelity) / base.n_layer
    calibration = Calibration(
        base=base,
        sets=tuple(LayerSet(k, tuple(sorted(measured.order[:k]))) for k in levels),
        read=probes.read,
        weight=probes.weight,
        bias=probes.bias,
        norm_eps=norm_eps,
        order=measured.order,
        skippable=tuple(skippable),
        fidelity=fidelity,
        tolerance=tolerance,
        share=share,
        margin=0.0,
        table=_table(predicted, real, base.n_layer),
        origin={**origin, "r2": round(coarse.r2, 3), "kept_out": int(kept.sum()), "prompts": len(kept)},
    )
    return Findings(calibration, _rows(measured, real, predicted, tolerance, speed), coarse.r2, int(kept.sum()))


def _table(predicted: Floats64, real: Outcomes, n_layer: int) -> tuple[TolerancePoint, ...]:
    """What tolerances spread over all predicted costs give."""
    found = []
    for tolerance in np.quantile(predicted, np.linspace(0, 1, TABLE_POINTS)):
        layers, kl, fidelity, _ = real.of(within(predicted, float(tolerance)))
        found.append(TolerancePoint(float(tolerance), layers / n_layer, kl, fidelity))
    return tuple(found)


def _rows(measured: Measured, real: Outcomes, predicted: Floats64, tolerance: float, speed: Speed) -> tuple[Row, ...]:
    n = len(real.kl)
    rows = [_row("dense", real, np.zeros(n, np.int64), speed)]
    truth = np.maximum.accumulate(real.kl[:, 1:], axis=1)
    for k in measured.levels:
        for kind in ("influence", "even"):
            if kind in measured.costs:
                rows.append(_row(kind, outcomes(measured, kind, measured.kept_out), np.full(n, k), speed))
        rows.append(_row("searched", real, np.full(n, k), speed))
        rows.append(_row("budget", real, at_mean(predicted, real.levels, k), speed))
        rows.append(_row("oracle", real, at_mean(truth, real.levels, k), speed))
    rows.append(_row("recommended", real, within(predicted, tolerance), speed))
    return tuple(rows)


def _row(system: str, real: Outcomes, chosen: Ints, speed: Speed) -> Row:
    layers, kl, fidelity, surprise = real.of(chosen)
    return Row(system, layers, kl, fidelity, float(np.exp(surprise)), *speed.of(chosen))


def sentence(found: Findings) -> str:
    """What a user must hear, in one sentence."""
    one, target = found.rows[-1], found.calibration.fidelity
    n_layer = found.calibration.base.n_layer
    if one.layers > 0:
        return (
            f"At fidelity {target:g} this model skips {one.layers / n_layer:.0%} of its layers on average, "
            f"{one.speed_up:.2f} times as fast."
        )
    least = next(row for row in found.rows if row.system == "searched")
    return (
        f"This model cannot spare layers at fidelity {target:g}: with one of {n_layer} skipped, {least.fidelity:.3f} is left, "
        f"{least.speed_up:.2f} times as fast (byte limit {least.byte_limit:.2f})."
    )
