"""What a calibration found: levels, their sets of layers, cost probes and what a tolerance gives."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from ..errors import RouterError
from ..gguf.cost_probes import CostProbes, LayerSet, TolerancePoint
from ..gguf.new_file import new_file
from ..gguf.router_format import WRITER
from ..gguf.routers import Base, Routers

SCHEMA = 1
LONG = ("orders", "influence")
"""Of `origin`, what a GGUF does not carry."""


@dataclass(frozen=True)
class Calibration:
    """Levels, sets and cost probes of one model, as plain values.

    base: the model. sets: by level ascending; the first of each level is the one for all prompts, another is taken only where
    its predicted log cost is lower by more than `margin`. read, last, weight, bias, norm_eps: of the probes, as in
    `CostProbes`. order: all layers, those that are missed least first. tolerance: the largest that keeps
    `fidelity` on average, 0 where none does. table: what other tolerances gave. share: what is safe for every prompt alike.
    skippable: of each layer. origin: prompts, command and figures, for people to read.
    """

    base: Base
    sets: tuple[LayerSet, ...]
    read: tuple[int, ...]
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    norm_eps: float
    order: tuple[int, ...]
    skippable: tuple[bool, ...]
    fidelity: float
    tolerance: float
    share: float
    margin: float
    table: tuple[TolerancePoint, ...] = ()
    last: tuple[int, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)

    def routers(self) -> Routers:
        """What goes into a GGUF: whole sets of layers and their cost probes. A set that two orders share counts once."""
        kept = [number for number, one in enumerate(self.sets) if one not in self.sets[:number]]
        cost = CostProbes(
            sets=tuple(self.sets[number] for number in kept),
            read=self.read,
            weight=self.weight[kept],
            bias=self.bias[kept],
            norm_eps=self.norm_eps,
            tolerance=self.tolerance,
            fidelity=self.fidelity,
            margin=self.margin,
            order=self.order,
            table=self.table,
            last=self.last,
        )
        return Routers(
            base=self.base,
            weight=np.empty((0, self.base.n_embd), np.float32),
            bias=np.empty(0, np.float32),
            norm_eps=self.norm_eps,
            skippable=self.skippable,
            skip=self.share,
            writer=WRITER,
            train={
                key: value if isinstance(value, str) else json.dumps(value)
                for key, value in self.origin.items()
                if key not in LONG
            },
            cost=cost,
        )

    def save(self, path: str) -> None:
        """Write a safetensors file: `weight` and `bias` as tensors, all else as JSON under the key `calibration`."""
        plain = {name: value for name, value in asdict(self).items() if name not in ("weight", "bias")}
        metadata = {"schema": str(SCHEMA), "calibration": json.dumps(plain)}
        with new_file(path) as file:
            file.write(save({"weight": self.weight, "bias": self.bias}, metadata=metadata))

    @classmethod
    def load(cls, path: str) -> Calibration:
        """Read what `save` wrote. Raises RouterError for another kind of file."""
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("schema") != str(SCHEMA) or "calibration" not in metadata:
                raise RouterError(f"{path} is no calibration of schema {SCHEMA}; `first-cpp calibrate` writes one")
            plain = json.loads(metadata["calibration"])
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        plain["base"] = Base(**plain["base"])
        plain["sets"] = tuple(LayerSet(one["level"], tuple(one["layers"])) for one in plain["sets"])
        plain["table"] = tuple(TolerancePoint(**one) for one in plain["table"])
        for name in ("read", "last", "order", "skippable"):
            plain[name] = tuple(plain.get(name, ()))
        return cls(weight=weight, bias=bias, **plain)
