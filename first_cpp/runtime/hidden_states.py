"""The residual stream of a prompt, read while llama.cpp computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _ext
from .layers import Layers


def read_hidden_states(llm: Any, layers: Layers, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """What enters each layer and leaves the last, float32 [n_layer + 1, n_tokens, n_embd]; the KV cache is empty afterwards."""
    n_points = len(layers.trouble) + 1
    sink = _ext.HiddenStates(n_points)
    llm._ctx.kv_cache_seq_rm(-1, 0, -1)
    layers.read(sink, final=True)
    try:
        for start in range(0, len(tokens), llm.n_batch):
            # every token is an output: the last layer would drop the others
            llm._batch.set_batch(batch=tokens[start : start + llm.n_batch], n_past=start, logits_all=True)
            llm._ctx.decode(llm._batch)
        layers.check()
    finally:
        layers.stop()
    llm._ctx.kv_cache_seq_rm(-1, 0, -1)
    return np.stack(sink.points()).reshape(n_points, len(tokens), -1)
