"""The model that is served, under its name, with what requests may ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import llama_cpp

from ..errors import SettingError, SkipError
from ..gguf.byte_limit import weight_reads
from ..llama import Llama
from ..runtime.arguments import check_tolerance
from ..runtime.policy import check_predicting
from ..skip import Skip, check_layers, layers_for_share, parse_skip
from .api_errors import unknown_model


@dataclass(frozen=True)
class ServedModel:
    """name: of the model in requests and answers. max_skip: the largest skip share. max_prompt: tokens. tolerance: for requests
    without, None for the file's.

    Calling it and iterating over it is what llama_cpp.server's routes do with their LlamaProxy.
    """

    llm: Llama
    name: str
    skip: Skip
    max_skip: float
    max_prompt: int
    logits_all: bool = False
    embeddings: bool = False
    tolerance: float | None = None

    def __call__(self, model: str | None = None) -> Llama:
        """The model by its name; no name means the only one. Raises ApiError for another."""
        if model not in (None, self.name):
            raise unknown_model(str(model), [self.name])
        return self.llm

    def __iter__(self) -> Iterator[str]:
        yield self.name

    @property
    def longest(self) -> int:
        """Tokens that a prompt may have: at least one place in the context is for the answer."""
        return min(self.max_prompt, int(self.llm.n_ctx()) - 1)

    @property
    def n_layer(self) -> int:
        return int(llama_cpp.llama_model_n_layer(self.llm.model))

    @property
    def dial(self) -> float:
        """The largest share of layers that a request can ask the routers for; 0 without routers."""
        return min(self.max_skip, (self.n_layer - 1) / self.n_layer) if self.llm.routers else 0.0

    def bytes_in_layers(self) -> float:
        """The share of the bytes of weights that a token reads which lie in layers: what skipping them can save at most."""
        reads = weight_reads(self.llm.model_path)
        return round(sum(reads.layers) / reads.weights(), 4)

    @property
    def default_tolerance(self) -> float | None:
        """The tolerance of requests without one; None where nothing predicts costs."""
        cost = self.llm.routers.cost if self.llm.routers else None
        return cost.tolerance if cost is not None and self.tolerance is None else self.tolerance

    def facts(self) -> dict[str, Any]:
        """What stays the same while it is loaded, as /health says it."""
        return {
            "n_layer": self.n_layer,
            "skip": self.skip,
            "max_skip": self.dial,
            "tolerance": self.default_tolerance,
            "routers": self.llm.routers is not None,
            "bytes_in_layers": self.bytes_in_layers(),
        }

    def check_skip(self, value: Any) -> Skip:
        """A request's skip setting. Raises SkipError with what is wrong and what is allowed."""
        if isinstance(value, (list, str, dict)) and len(value) > max(100, self.n_layer):  # before each of them is checked
            raise SkipError(f"skip has {len(value)} entries; this model has layers 0 to {self.n_layer - 1}")
        skip = parse_skip(value if not isinstance(value, dict) else str(value))
        if isinstance(skip, tuple):
            check_layers(skip, self.n_layer)
        elif isinstance(skip, float):
            layers_for_share(skip, self.n_layer)
            if skip > 0 and self.llm.routers is None:
                raise SkipError(f"skip={value!r} needs routers, and this model has none; a list of layers needs none")
        if self._share(skip) > self.max_skip + 1e-7:
            asked = f"skip={value!r}" + ("" if isinstance(skip, float) else f", a share of {self._share(skip):.3g},")
            raise SkipError(f"{asked} is above the maximum of this server, {self.max_skip:g}")
        return skip

    def check_tolerance(self, value: Any) -> float | None:
        """A request's tolerance. Raises SettingError with what is wrong and what is allowed."""
        tolerance = check_tolerance(value)
        check_predicting(tolerance, self.llm.routers, self.name)
        if tolerance is not None and self.llm.held is not None:
            raise SettingError(f"tolerance={tolerance:g}: this server holds a fidelity, which moves the tolerance")
        return tolerance

    def _share(self, skip: Skip) -> float:
        """The largest share of layers that a setting may skip."""
        if skip == "auto":
            routers = self.llm.routers
            if routers is None:
                return 0.0
            return routers.skip if routers.cost is None else routers.cost.levels[-1] / self.n_layer
        if isinstance(skip, tuple):
            return len(skip) / self.n_layer
        return skip if isinstance(skip, float) else 0.0
