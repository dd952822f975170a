"""What a saved state knows beyond llama_cpp's."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def _with_kept_logits(llm: Any, logits_all: bool) -> Iterator[None]:
    """Inside, `scores` has no more than a row where the logits of all positions are not kept: nothing is written to the others,
    of which there are n_batch, 4 bytes per token of the vocabulary each."""
    scores = llm.scores
    if not logits_all:
        llm.scores = np.zeros((1, scores.shape[1]), np.single)
    try:
        yield
    finally:
        llm.scores = scores


def take(llm: Any, logits_all: bool, save: Callable[[], llama_cpp.LlamaState]) -> llama_cpp.LlamaState:
    """`save()`, without what is no part of the state."""
    with _with_kept_logits(llm, logits_all):
        return save()


def restore(llm: Any, logits_all: bool, load: Callable[[llama_cpp.LlamaState], None], state: llama_cpp.LlamaState) -> None:
    """`load(state)`, which may change a model only in part before it fails: the model is then reset, and StateError raised."""
    memory, tokens = llama_cpp.llama_get_memory(llm.ctx), llm.input_ids
    if not isinstance(state, llama_cpp.LlamaState):
        raise TypeError(f"a state is what save_state gives, not {type(state).__name__}")
    try:
        if state.n_tokens > len(tokens):
            raise ValueError(f"it has {state.n_tokens} tokens, the context has room for {len(tokens)}")
        with _with_kept_logits(llm, logits_all):
            load(_with_logits(state, logits_all))
        tokens[: state.n_tokens] = state.input_ids[: state.n_tokens]  # of a model with another n_ctx, too
        llm.input_ids = tokens
    except Exception as error:
        llm.input_ids = tokens
        llama_cpp.llama_memory_clear(memory, True)
        llm.reset()
        raise StateError(f"the state cannot be restored: {error}; the model was reset, and holds no token") from error


def _with_logits(state: llama_cpp.LlamaState, logits_all: bool) -> llama_cpp.LlamaState:
    """The state with as many logits as the model keeps. Raises ValueError where it has fewer."""
    if logits_all:
        if len(state.scores) < state.n_tokens or (state.n_tokens and not state.scores[0].any()):
            raise ValueError("it has not the logits of all its tokens, which a model with logits_all=True keeps")
        return state
    fitting = copy.copy(state)
    fitting.scores = state.scores[:1]
    return fitting
