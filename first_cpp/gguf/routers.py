"""Routers and the model they were made for; how they are written in files is `router_format`'s."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import RouterError, SkipError
from ..skip import layers_for_share
from .cost_probes import CostProbes, check_cost_probes
from .printable import printable

MAX_LAYERS = 4096
"""More layers than any model has: a bound before sizes are multiplied."""


@dataclass(frozen=True)
class Base:
    """The model that routers were made for.

    architecture: llama.cpp's name, "llama"; empty while it is not known (routers just trained in PyTorch). n_layer: the layers
    that answers run. n_embd: values in a hidden state. fingerprint: `ModelFile.fingerprint`; empty while it is not known.
    """

    architecture: str
    n_layer: int
    n_embd: int
    fingerprint: str


@dataclass(frozen=True)
class Routers:
    """How a prompt chooses layers to skip: by one linear router per layer (FiRST, arXiv 2410.12513), or whole sets of them.

    weight: [n_layer, n_embd] float32; bias: [n_layer] float32; both of length 0 where whole sets are chosen. The keep score of
    a layer at a position is sigmoid(weight . rmsnorm(h) + bias) with h the hidden state entering the layer, rmsnorm(h) =
    h / sqrt(mean(h^2) + norm_eps).
    skippable: [n_layer] bools, the layers that may be skipped. skip: the share of layers the file recommends ("auto").
    writer: the program that wrote the file. train: what they were trained on and how well they did, as their maker wrote it.
    cost: levels and what each is predicted to cost a prompt, None where that is not known.

    >>> from first_cpp import load_routers
    >>> routers = load_routers("model-first.gguf")
    >>> routers.weight.shape, routers.bias.shape, f"{routers.skip:.2f}"
    ((6, 128), (6,), '0.34')
    """

    base: Base
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    norm_eps: float
    skippable: tuple[bool, ...]
    skip: float
    writer: str = ""
    train: dict[str, str | int | float] = field(default_factory=dict)
    cost: CostProbes | None = None

    @property
    def kind(self) -> str:
        """ "layers": the routers' keep scores choose; "sets": each level has its set, or some to choose from."""
        return "layers" if len(self.bias) else "sets"


def check_values(routers: Routers, where: str) -> None:
    """Raise RouterError for values no router may have: NaN, Inf, scores that overflow, settings out of range.

    where: the file they come from, which the error names.

    >>> check_values(Routers(Base("llama", 1, 2, ""), np.zeros((1, 2)), np.zeros(1), 1e-5, (True,), skip=1.5), "my file")
    Traceback (most recent call last):
    first_cpp.errors.RouterError: my file: first.policy.skip is 1.5, expected a share from 0 up to 1
    """
    _check_shapes(routers, where)
    if routers.kind == "layers":
        _check_routers(routers, where)
    if not (math.isfinite(routers.skip) and 0 <= routers.skip < 1):
        raise RouterError(f"{where}: first.policy.skip is {routers.skip}, expected a share from 0 up to 1")
    try:
        layers_for_share(routers.skip, routers.base.n_layer)
    except SkipError as error:
        raise RouterError(f"{where}: first.policy.skip: {error}") from None
    if not any(routers.skippable):
        raise RouterError(f"{where}: first.router.skippable marks no layer, expected at least one")
    if routers.cost is not None:
        by_routers = routers.kind == "layers"
        check_cost_probes(routers.cost, routers.base.n_layer, routers.base.n_embd, routers.skippable, by_routers, where)


def _check_routers(routers: Routers, where: str) -> None:
    for name, values in (("weight", routers.weight), ("bias", routers.bias)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            layer, index = int(bad[0][0]), [int(i) for i in bad[0]]
            raise RouterError(f"{where}: first.router.{name} of layer {layer} is not finite: {values[tuple(index)]} at {index}")
    with np.errstate(over="ignore"):
        # |w . rmsnorm(h)| is at most |w| sqrt(n_embd); float32 must hold the sums on the way.
        reach = np.linalg.norm(routers.weight.astype(np.float64), axis=1) * math.sqrt(routers.base.n_embd)  # [n_layer]
    worst = int(np.argmax(reach + np.abs(routers.bias.astype(np.float64))))
    if reach[worst] + abs(float(routers.bias[worst])) > 1e30:
        raise RouterError(f"{where}: first.router.weight or bias of layer {worst} is too large: its score overflows float32")
    if not (math.isfinite(routers.norm_eps) and 0 < routers.norm_eps < 1):
        raise RouterError(f"{where}: first.router.norm_eps is {routers.norm_eps}, expected a number above 0 and below 1")


def _check_shapes(routers: Routers, where: str) -> None:
    n_layer, n_embd = routers.base.n_layer, routers.base.n_embd
    n_router = 0 if routers.cost is not None and routers.kind == "sets" else n_layer
    for name, found, expected in (
        ("weight", routers.weight.shape, [n_router, n_embd]),
        ("bias", routers.bias.shape, [n_router]),
        ("skippable", [len(routers.skippable)], [n_layer]),
    ):
        if list(found) != expected:
            raise RouterError(f"{where}: {name} has shape {list(found)}, this model needs {expected}")


def check_base(routers: Routers, model: Base, where: str) -> None:
    """Raise RouterError where the routers in `where` were made for another model than `model`."""
    for name in ("architecture", "n_layer", "n_embd", "fingerprint"):
        expected, found = getattr(model, name), getattr(routers.base, name)
        if expected != found:
            hint = " (the norm weights differ)" if name == "fingerprint" else ""
            raise RouterError(
                f"the routers in {where} were made for another model: first.base.{name} is {printable(str(found), 80)}, "
                f"this model's is {expected}{hint}"
            )
