"""What is read of a prompt: routers' keep scores and predicted costs, one value a position and column."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from .. import _ext
from ..gguf.cost_probes import CostProbes
from ..gguf.routers import Routers


def read_layers(routers: Routers) -> tuple[int, ...]:
    """The layers whose inputs are read, ascending: all for routers, those of the cost probes alone for whole sets."""
    if routers.kind == "layers":
        return tuple(range(routers.base.n_layer))
    assert routers.cost is not None
    return tuple(sorted({*routers.cost.read, *routers.cost.last}))


def prompt_probes(routers: Routers) -> _ext.RouterScores:
    """A reader of the inputs of `read_layers`. Columns: the keep score of each layer where routers choose, then the log cost of
    each set of the cost probes: what is read as a mean, where anything is, and then what is read of the last position."""
    points = {layer: point for point, layer in enumerate(read_layers(routers))}
    probes = [
        _ext.Probe(points[layer], layer, weight, float(bias), routers.norm_eps, sigmoid=True)
        for layer, (weight, bias) in enumerate(zip(routers.weight, routers.bias, strict=True))
    ]
    if (cost := routers.cost) is not None:
        n_set, n_keep = len(cost.sets), len(routers.bias)
        first_last = n_keep + (n_set if cost.read else 0)
        columns = [*((layer, n_keep) for layer in cost.read), *((layer, first_last) for layer in cost.last)]
        probes += [
            _ext.Probe(
                points[layer],
                first + number,
                cost.weight[number, r],
                0.0 if r else float(cost.bias[number]),  # once: at a position, or at each, of which the mean is it too
                cost.norm_eps,
                sigmoid=False,
            )
            for number in range(n_set)
            for r, (layer, first) in enumerate(columns)
        ]
    return _ext.RouterScores(probes)


def log_costs(cost: CostProbes, means: npt.NDArray[np.float64], last: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of each set, float64 [n_set], from the columns of `prompt_probes` after the keep scores: their means over the prompt, and
    those of its last position."""
    n_set = len(cost.sets)
    found = means[:n_set] if cost.read else np.zeros(n_set)
    return found + last[-n_set:] if cost.last else found


def identity(routers: Routers) -> str:
    """Tells routers apart: what others read is of no use."""
    digest = hashlib.sha256(routers.weight.tobytes() + routers.bias.tobytes())
    if (cost := routers.cost) is not None:
        digest.update(repr((cost.read, cost.last, cost.norm_eps)).encode() + cost.weight.tobytes() + cost.bias.tobytes())
    return digest.hexdigest()
