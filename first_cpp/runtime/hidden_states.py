"""The hidden states of a prompt, read while llama.cpp computes them."""

from __future__ import annotations

from collections.abc import Sequence

import llama_cpp
import numpy as np
import numpy.typing as npt

from .. import _ext
from ..errors import RoutingError
from .layers import Layers
from .llama_batch import decode, empty_memory


def read_hidden_states(llm: llama_cpp.Llama, layers: Layers, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """What enters each layer and leaves the last, float32 [n_layer + 1, n_tokens, n_embd]; the KV cache is empty afterwards.

    Raises ValueError for no tokens or more than n_ctx, RoutingError for a model whose graph does not name its layers.
    """
    if not 0 < len(tokens) <= llm.n_ctx():
        raise ValueError(f"hidden_states takes 1 to n_ctx={llm.n_ctx()} tokens, got {len(tokens)}")
    if layers.dense_because or not layers.readable:
        why = layers.dense_because or "its graph does not name them all"
        raise RoutingError(f"the hidden states of this model cannot be read: {why}")
    n_points = len(layers.unskippable) + 1
    reader = _ext.HiddenStates(n_points)
    with empty_memory(llm), layers.reading(reader, final=True):
        for start in range(0, len(tokens), llm.n_batch):
            # every token is an output: the last layer would drop the others
            decode(llm, tokens[start : start + llm.n_batch], start, all_outputs=True)
    return np.stack(reader.points()).reshape(n_points, len(tokens), -1)
