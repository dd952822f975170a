"""Bytes that one decoded token reads, with and without the layers left out: the limit of what leaving them out can gain."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .._ext import CacheTensor, GgufFile
from .model_file import open_model

_KV_STEP = 256  # llama.cpp reads KV cells in multiples of this (llama-kv-cache.cpp, get_n_kv)


@dataclass(frozen=True)
class Reads:
    """layers: bytes of weights that a token reads in each layer. rest: outside the layers."""

    layers: tuple[int, ...]
    rest: int

    def weights(self, left_out: Collection[int] = ()) -> int:
        """Bytes of weights that a token reads without `left_out`."""
        return self.rest + sum(n for layer, n in enumerate(self.layers) if layer not in left_out)


def weight_reads(path: str) -> Reads:
    """What a token reads of a model's weights. A lookup in the token embedding is not counted; of experts, those in use."""
    parts = open_model(path)
    tensors = [tensor for _, file in parts for tensor in file.tensors()]
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    share = _experts_in_use(parts[0][1])
    layers: dict[int, float] = {}
    rest = 0.0
    for tensor in tensors:
        n_bytes = tensor.n_bytes * (share if "_exps." in tensor.name else 1.0)
        block, _, name = tensor.name.partition(".")
        if block == "blk":
            layer = int(name.split(".", 1)[0])
            layers[layer] = layers.get(layer, 0.0) + n_bytes
        elif tensor.name != "token_embd.weight" or tied:
            rest += n_bytes
    return Reads(tuple(round(layers.get(i, 0.0)) for i in range(max(layers, default=-1) + 1)), round(rest))


def _experts_in_use(file: GgufFile) -> float:
    architecture = file.get("general.architecture").decode()
    keys = [f"{architecture}.expert_used_count", f"{architecture}.expert_count"]
    if not all(key in file.keys() for key in keys):
        return 1.0
    used, count = (int(file.get(key)) for key in keys)
    return used / count if count else 1.0


def kv_reads(cache: Sequence[CacheTensor], n_ctx: int, position: int, left_out: Collection[int] = ()) -> int:
    """Bytes of KV cache that the token at `position` reads: the cells in use of all layers but `left_out`."""
    cells = min(n_ctx, -(-(position + 1) // _KV_STEP) * _KV_STEP)
    return sum(tensor.n_bytes for tensor in cache if tensor.layer not in left_out) * cells // n_ctx


def byte_limit(reads: Reads, cache: Sequence[CacheTensor], n_ctx: int, position: int, left_out: Collection[int]) -> float:
    """The speed-up over dense if decoding took exactly as long as reading its bytes."""
    dense = reads.weights() + kv_reads(cache, n_ctx, position)
    return dense / (reads.weights(left_out) + kv_reads(cache, n_ctx, position, left_out))
