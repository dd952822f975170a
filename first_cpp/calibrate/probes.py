"""Cost probes: what each level will cost a prompt, predicted from its hidden states by ridge regression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats64 = npt.NDArray[np.float64]

LEAST_COST = 1e-4
"""Nats: costs are floored here before their logarithm is taken."""
PENALTIES = tuple(10.0**power for power in np.arange(-3, 4, 0.5))
"""Ridge penalties tried, times the mean squared length of the centred inputs."""
BETTER = 0.99
"""A second input is read only where the leave-one-out error falls below this share of the first's."""


@dataclass(frozen=True)
class Probes:
    """log cost[s] = bias[s] + sum over r of weight[s, r] . input read[r] of a prompt.

    read: which inputs, rows of `Answered.read`, are read, ascending. weight: float32 [n_set, n_read, n_embd]. bias: float32
    [n_set]. r2: share of the variance of log cost that leave-one-out predictions explain, over all sets.
    """

    read: tuple[int, ...]
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    r2: float

    def log_cost(self, hidden: npt.NDArray[np.float32]) -> Floats64:
        """Predicted log cost, float64 [n, n_set], from hidden, float32 [n, n_input, n_embd]."""
        found: Floats64 = np.einsum("nre,sre->ns", hidden[:, list(self.read)].astype(np.float64), self.weight) + self.bias
        return found

    def split(self, n: int) -> list[Probes]:
        """Probes of `n` kinds of sets that stand one after another."""
        parts = zip(np.split(self.weight, n), np.split(self.bias, n), strict=True)
        return [Probes(self.read, weight, bias, self.r2) for weight, bias in parts]


def fit(hidden: npt.NDArray[np.float32], costs: Floats64, inputs: Sequence[int]) -> Probes:
    """Ridge regression of log cost, the penalty and one or two inputs to read chosen by leave-one-out error.

    hidden: float32 [n, n_input, n_embd]. costs: [n, n_set], nats. inputs: those that may be read.

    >>> rng = np.random.default_rng(0)
    >>> hidden = rng.normal(size=(80, 4, 8)).astype(np.float32)
    >>> found = fit(hidden, np.exp(hidden[:, 2, :1] - 3.0), range(4))
    >>> found.read, found.r2 > 0.99
    ((2,), True)
    """
    target = np.log(np.maximum(costs, LEAST_COST))
    best = min((_solve(hidden, target, (one,)) for one in inputs), key=lambda found: found[0])
    pairs = [tuple(sorted((*best[1].read, one))) for one in inputs if one not in best[1].read]
    if pairs:
        second = min((_solve(hidden, target, pair) for pair in pairs), key=lambda found: found[0])
        best = second if second[0] < BETTER * best[0] else best
    return best[1]


def _solve(hidden: npt.NDArray[np.float32], target: Floats64, read: tuple[int, ...]) -> tuple[float, Probes]:
    """The leave-one-out error, and the probes that read `read` with the penalty that makes it least."""
    x_mean, y_mean = hidden[:, list(read)].mean(axis=0, dtype=np.float64), target.mean(axis=0)
    centred, y = hidden[:, list(read)] - x_mean, target - y_mean  # [n, n_read, n_embd]
    lengths = np.sqrt((centred**2).sum(axis=2).mean(axis=0)) + 1e-30  # inputs of other sizes count alike
    x = (centred / lengths[:, None]).reshape(len(hidden), -1)
    gram = x @ x.T
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0)
    scale = float(values.sum()) / len(x) or 1.0
    error, penalty = min(_left_out(vectors, values, y, scale))
    dual = vectors @ ((vectors.T @ y) / (values + penalty)[:, None])  # [n, n_set]
    weight = (dual.T @ x).reshape(-1, len(read), hidden.shape[2]) / lengths[:, None]  # [n_set, n_read, n_embd]
    bias = y_mean - np.einsum("re,sre->s", x_mean, weight)
    spread = float((y**2).mean()) * (len(x) / (len(x) - 1)) ** 2 or 1.0  # of the mean, left out alike
    probes = Probes(read, weight.astype(np.float32), bias.astype(np.float32), 1 - error / spread)
    return error, probes


def _left_out(vectors: Floats64, values: Floats64, y: Floats64, scale: float) -> Iterator[tuple[float, float]]:
    """Mean squared leave-one-out error, in closed form, and the penalty, for each penalty.

    residual_i / (1 - h_ii - 1/n) with h the hat matrix of the centred inputs: the intercept is fitted again, too.
    """
    n = len(y)
    for penalty in PENALTIES:
        kept = values / (values + penalty * scale)
        fitted = vectors @ (kept[:, None] * (vectors.T @ y))
        leverage = (vectors**2) @ kept + 1 / n
        yield float((((y - fitted) / (1 - leverage)[:, None]) ** 2).mean()), penalty * scale


def interpolate(probes: Probes, levels: Sequence[int], wanted: Sequence[int]) -> Probes:
    """Probes for the levels `wanted` from those for the measured `levels`: log cost is linear in the layers skipped."""
    parts = np.array([[np.interp(k, levels, row) for row in np.eye(len(levels))] for k in wanted])  # [n_wanted, n_level]
    weight = np.einsum("wl,lre->wre", parts, probes.weight).astype(np.float32)
    return Probes(probes.read, weight, (parts @ probes.bias).astype(np.float32), probes.r2)


def interpolated(values: Floats64, levels: Sequence[int], wanted: Sequence[int]) -> Floats64:
    """Measured values [n, n_level] at the levels `wanted`, linear in between: [n, n_wanted]."""
    return np.stack([np.interp(wanted, levels, row) for row in values])


def monotone(log_cost: Floats64) -> Floats64:
    """No level is predicted cheaper than one that skips fewer layers: the running maximum over levels, [n, n_level]."""
    found: Floats64 = np.maximum.accumulate(log_cost, axis=1)
    return found
