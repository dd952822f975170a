"""A KV cache filled to some depth without the hours that reading as many tokens would take."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp

from .._ext import CacheTensor
from ..gguf.model_file import ModelFile
from ..llama import Llama
from .models import random_routers


def filled_state(model: str, tokens_for: Callable[[int], list[int]], settings: dict[str, Any]) -> llama_cpp.LlamaState:
    """The state of a context that holds `tokens_for(n_vocab)`: in every layer values of the right kind and of no meaning.

    One layer reads the tokens, the others get copies of its cells; where a layer cannot be skipped, all of them read.
    """
    file = ModelFile.open(model)
    # routers of its own: a pruned file has what is left of those of the whole model
    llm = Llama(model, routers=random_routers(file), skip=None, **settings)
    try:
        tokens = tokens_for(llm.n_vocab())
        if file.n_layer > 1 and not any(llm.unskippable):
            with llm.skipping(range(1, file.n_layer)):
                llm.eval(tokens)
            _copy_cells(llm.kv_cache)
        else:
            llm.eval(tokens)
        # the base class's state: taken as evaluated with all layers, by stock llama_cpp.Llama too
        return llama_cpp.Llama.save_state(llm)
    finally:
        llm.close()


def _copy_cells(cache: Sequence[CacheTensor]) -> None:
    """Copy layer 0's cache tensors over the other layers', tensor by tensor of the same kind (name up to the layer number)."""
    first = {tensor.name.rsplit("_l", 1)[0]: tensor for tensor in cache if tensor.layer == 0}
    for tensor in cache:
        source = first.get(tensor.name.rsplit("_l", 1)[0])
        if source is not None and tensor.layer != 0:
            ctypes.memmove(tensor.address, source.address, min(source.n_bytes, tensor.n_bytes))
