"""What a saved state knows beyond llama_cpp's."""

from __future__ import annotations

import llama_cpp
import numpy as np
import numpy.typing as npt

from .kv_record import KvRecord


class LlamaState(llama_cpp.LlamaState):  # type: ignore[misc]
    """A saved state that also tells which positions lack which layers, and the router scores of the others."""

    def __init__(
        self,
        state: llama_cpp.LlamaState,
        kv: KvRecord,
        foreign: int,
        scores: npt.NDArray[np.float32] | None,
        router_id: str | None,
    ) -> None:
        self.__dict__.update(state.__dict__)
        self.kv = kv
        self.foreign = foreign
        self.router_scores = scores
        self.router_id = router_id
