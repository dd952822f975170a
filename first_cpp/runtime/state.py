"""What a saved state knows beyond llama_cpp's."""

from __future__ import annotations

import llama_cpp
import numpy as np
import numpy.typing as npt

from .kv_record import KvRecord


class LlamaState(llama_cpp.LlamaState):  # type: ignore[misc]
    """A saved state that also knows which positions lack the KV of which layers, and the router scores of the others.

    >>> from first_cpp import Llama
    >>> llm = Llama("model.gguf", skip=[2], verbose=False)
    >>> llm.eval(llm.tokenize(b"Hello"))
    >>> state = llm.save_state()
    >>> llm.reset()
    >>> llm.load_state(state)
    >>> llm.n_tokens == state.n_tokens
    True
    """

    def __init__(
        self,
        state: llama_cpp.LlamaState,
        kv: KvRecord,
        n_image: int,
        scores: npt.NDArray[np.float32] | None,
        router_id: str | None,
    ) -> None:
        self.__dict__.update(state.__dict__)
        self.kv = kv
        self.n_image = n_image
        self.router_scores = scores
        self.router_id = router_id
