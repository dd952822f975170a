"""A KV cache filled to some depth without the hours that reading as many tokens would take."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llama_cpp

from .._ext import CacheTensor
from ..llama import Llama


def filled_state(model: str, tokens_for: Callable[[int], list[int]], settings: dict[str, Any]) -> llama_cpp.LlamaState:
    """The state of a context that holds `tokens_for(n_vocab)`: in every layer values of the right kind and of no meaning.

    One layer reads the tokens, the others get copies of its cells. A model whose layers cannot be left out reads them in full.
    """
    llm = _Donor(model, skip=None, **settings)
    tokens = tokens_for(llm.n_vocab())
    n_layer = llama_cpp.llama_model_n_layer(llm.model)
    possible = [layer for layer in range(n_layer) if not llm.unskippable[layer]]
    if len(possible) == n_layer > 1:
        with llm.skipping(range(1, n_layer)):
            llm.eval(tokens)
        _copy_cells(llm.kv_cache)
    else:
        llm.eval(tokens)
    # the base class's state: taken as evaluated with all layers, by stock llama_cpp.Llama too
    state = llama_cpp.Llama.save_state(llm)
    llm.close()
    return state


class _Donor(Llama):
    def _find_routers(self, *_: Any) -> None:
        return None  # a pruned file has those of the whole model


def _copy_cells(cache: list[CacheTensor]) -> None:
    """Copy layer 0's cache tensors over the other layers', tensor by tensor of the same kind (name up to the layer number)."""
    first = {tensor.name.rsplit("_l", 1)[0]: tensor for tensor in cache if tensor.layer == 0}
    for tensor in cache:
        source = first.get(tensor.name.rsplit("_l", 1)[0])
        if source is not None and tensor.layer != 0:
            ctypes.memmove(tensor.address, source.address, min(source.n_bytes, tensor.n_bytes))
