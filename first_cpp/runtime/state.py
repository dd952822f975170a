"""What a saved state knows beyond llama_cpp's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from ..errors import StateError
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


def restore(llm: Any, load: Callable[[llama_cpp.LlamaState], None], state: llama_cpp.LlamaState) -> None:
    """`load(state)`, which may change a model only in part before it fails: the model is then reset, and StateError raised."""
    memory, tokens = llama_cpp.llama_get_memory(llm.ctx), llm.input_ids
    if not isinstance(state, llama_cpp.LlamaState):
        raise TypeError(f"a state is what save_state gives, not {type(state).__name__}")
    try:
        if state.n_tokens > len(tokens):
            raise ValueError(f"it has {state.n_tokens} tokens, the context has room for {len(tokens)}")
        load(state)
        tokens[: state.n_tokens] = state.input_ids[: state.n_tokens]  # of a model with another n_ctx, too
        llm.input_ids = tokens
    except Exception as error:
        llm.input_ids = tokens
        llama_cpp.llama_memory_clear(memory, True)
        llm.reset()
        raise StateError(f"the state cannot be restored: {error}; the model was reset, and holds no token") from error
