"""What is read of a prompt: routers' keep scores and predicted costs, one value a position and column."""

from __future__ import annotations

import hashlib

from .. import _ext
from ..gguf.routers import Routers


def read_layers(routers: Routers) -> tuple[int, ...]:
    """The layers whose inputs are read, ascending: all for routers, those of the cost probes alone for whole sets."""
    if routers.kind == "layers":
        return tuple(range(routers.base.n_layer))
    assert routers.cost is not None
    return routers.cost.read


def prompt_probes(routers: Routers) -> _ext.RouterScores:
    """A reader of the inputs of `read_layers`. Columns: the keep score of each layer where routers choose, then the log cost of
    each set of the cost probes."""
    points = {layer: point for point, layer in enumerate(read_layers(routers))}
    probes = [
        _ext.Probe(points[layer], layer, weight, float(bias), routers.norm_eps, sigmoid=True)
        for layer, (weight, bias) in enumerate(zip(routers.weight, routers.bias, strict=True))
    ]
    if (cost := routers.cost) is not None:
        probes += [
            _ext.Probe(
                points[layer],
                len(routers.bias) + number,
                cost.weight[number, r],
                0.0 if r else float(cost.bias[number]),  # once a position: its mean is the bias
                cost.norm_eps,
                sigmoid=False,
            )
            for number in range(len(cost.sets))
            for r, layer in enumerate(cost.read)
        ]
    return _ext.RouterScores(probes)


def identity(routers: Routers) -> str:
    """Tells routers apart: what others read is of no use."""
    digest = hashlib.sha256(routers.weight.tobytes() + routers.bias.tobytes())
    if (cost := routers.cost) is not None:
        digest.update(repr((cost.read, cost.norm_eps)).encode() + cost.weight.tobytes() + cost.bias.tobytes())
    return digest.hexdigest()
