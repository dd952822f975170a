"""Bytes that one decoded token reads, dense and with layers skipped: the limit of what skipping them can gain."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .._ext import CacheTensor
from .model_file import ModelFile

_KV_STEP = 256  # llama.cpp reads KV cells in multiples of this (llama-kv-cache.cpp, get_n_kv)


@dataclass(frozen=True)
class Reads:
    """What a token reads: of weights in each layer, and outside the layers (`rest`), in bytes."""

    layers: tuple[int, ...]
    rest: int

    def weights(self, skipped: Collection[int] = ()) -> int:
        """Bytes of weights that a token reads with the layers `skipped`."""
        return self.rest + sum(n for layer, n in enumerate(self.layers) if layer not in skipped)


def weight_reads(path: str | os.PathLike[str]) -> Reads:
    """What a token reads of a model's weights, without a lookup in the token embedding; of experts, those in use.

    Raises as `ModelFile.open` does.

    >>> reads = weight_reads("model.gguf")
    >>> len(reads.layers), reads.weights() > reads.weights(skipped=[2])
    (6, True)
    """
    model = ModelFile.open(path)
    tensors = [tensor for _, tensor in model.tensors()]
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    share = _experts_in_use(model)
    layers = [0.0] * model.n_layer
    rest = 0.0
    for tensor in tensors:
        n_bytes = tensor.n_bytes * (share if "_exps." in tensor.name else 1.0)
        found = re.match(r"blk\.(\d+)\.", tensor.name)
        if found:
            if int(found[1]) < model.n_layer:  # after them stand next-token-prediction blocks, which answers do not read
                layers[int(found[1])] += n_bytes
        elif tensor.name != "token_embd.weight" or tied:
            rest += n_bytes
    return Reads(tuple(map(round, layers)), round(rest))


def _experts_in_use(model: ModelFile) -> float:
    """The share of a layer's experts that a token passes through; 1 where there are none."""
    used, count = (_count(model, f"expert_{name}") for name in ("used_count", "count"))
    return min(1.0, used / count) if used and count else 1.0


def _count(model: ModelFile, name: str) -> int:
    key = model.key(name)
    return int(model.first.get(key)) if model.first.kind(key) == "u32" else 0


def kv_reads(cache: Sequence[CacheTensor], n_ctx: int, position: int, skipped: Collection[int] = ()) -> int:
    """Bytes of KV cache that the token at `position` reads: the cells in use of the layers not `skipped`.

    >>> kv_reads([], n_ctx=256, position=0)
    0
    """
    cells = min(n_ctx, -(-(position + 1) // _KV_STEP) * _KV_STEP)
    return sum(tensor.n_bytes for tensor in cache if tensor.layer not in skipped) * cells // n_ctx


def byte_limit(reads: Reads, cache: Sequence[CacheTensor], n_ctx: int, position: int, skipped: Collection[int]) -> float:
    """The speed-up over dense if decoding took exactly as long as reading its bytes.

    cache: the KV cache of a model, `Llama.kv_cache`. position: of the token, from 0.

    >>> byte_limit(Reads(layers=(10, 10), rest=20), cache=[], n_ctx=256, position=0, skipped=[1])
    1.3333333333333333
    """
    dense = reads.weights() + kv_reads(cache, n_ctx, position)
    return dense / (reads.weights(skipped) + kv_reads(cache, n_ctx, position, skipped))
