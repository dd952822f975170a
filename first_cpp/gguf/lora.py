"""A LoRA of peft in GGUF terms: which tensor each pair belongs to, and how its rows are ordered there."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._ext import GgufFile
from ..errors import FirstCppError, MissingFileError
from .model_file import ModelFile

Array = npt.NDArray[np.float32]

# llama.cpp rotates neighbouring values in these, transformers halves: their q and k rows are stored in another order.
PERMUTED = {"llama", "granite", "granitemoe", "smollm3", "minicpm", "arcee"}
# Here both rotate halves, or store q and k alike.
AS_IS = {"qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "olmo2", "starcoder2", "stablelm", "seed_oss", "exaone4"}
MAX_HEADS = 65536


class LoraError(FirstCppError, ValueError):
    """A LoRA that cannot be put into this model."""


@dataclass(frozen=True)
class LoraPair:
    """W + scale * b @ a for the GGUF tensor `name`: a [rank, n_in], b [n_out, rank] float32, rows in GGUF's order."""

    name: str
    a: Array
    b: Array
    scale: float


def read_run_lora(run: str, model: ModelFile) -> list[LoraPair]:
    """The pairs in the adapter folder of a training run, for this model. Raises as `read_lora` does."""
    n_head = _heads(model.first, model.key("attention.head_count"), 0)
    n_head_kv = _heads(model.first, model.key("attention.head_count_kv"), n_head)
    return read_lora(os.path.join(run, "adapter"), model.architecture, model.n_layer, n_head, n_head_kv)


def _heads(file: GgufFile, key: str, default: int) -> int:
    if not file.kind(key) and default:
        return default
    found = int(file.get(key)) if file.kind(key) == "u32" else 0
    if not 0 < found <= MAX_HEADS:
        raise LoraError(f"{key} is {found or file.kind(key) or 'missing'}, expected one number of heads for all layers")
    return found


def read_lora(folder: str, architecture: str, n_layer: int, n_head: int, n_head_kv: int) -> list[LoraPair]:
    """The pairs of a peft adapter folder, by tensor name; n_head, n_head_kv: heads of q, and of k and v.

    Raises LoraError for what cannot be folded in, MissingFileError.
    """
    import gguf

    config = _config(folder)
    check_architecture(architecture)
    rank, alpha = _number(config, "r", folder), _number(config, "lora_alpha", folder)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    keys = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(keys[architecture], n_layer)
    tensors = _tensors(os.path.join(folder, "adapter_model.safetensors"))
    pairs = []
    for key in sorted(tensors):
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_A\.weight", key)
        if found is None:
            if not key.endswith(".lora_B.weight"):
                raise LoraError(f"{folder}: tensor {key} is not a LoRA weight")
            continue
        name = names.get_name(found[1])
        other = key.replace(".lora_A.", ".lora_B.")
        if name is None or other not in tensors:
            raise LoraError(f"{folder}: {key} has {'no lora_B' if name else 'no place in a ' + architecture + ' GGUF'}")
        heads = {"q": n_head, "k": n_head_kv}.get(name[-1]) if architecture in PERMUTED and ".attn_" in name else None
        pairs.append(_pair(name, tensors[key], tensors[other], scale, heads, f"{folder}: {key}"))
    if not pairs:
        raise LoraError(f"{folder}: no LoRA weights")
    return pairs


def check_architecture(architecture: str) -> None:
    """Raise LoraError for an architecture whose weights a LoRA of peft cannot be folded into."""
    if architecture not in PERMUTED | AS_IS:
        raise LoraError(
            f"the order of q and k rows in {architecture} models is not known; supported: {sorted(PERMUTED | AS_IS)}"
        )


def _pair(name: str, a: Array, b: Array, scale: float, heads: int | None, where: str) -> LoraPair:
    """heads: of the tensor, where its rows are stored in another order than transformers'."""
    if a.ndim != 2 or b.ndim != 2 or not 0 < a.shape[0] == b.shape[1]:
        raise LoraError(f"{where} of shape {list(a.shape)} and its lora_B of {list(b.shape)} are no pair")
    b = np.ascontiguousarray(b, np.float32)
    if heads is not None:
        if b.shape[0] % (2 * heads):
            raise LoraError(f"{where}: {b.shape[0]} rows are no even number for each of {heads} heads")
        b = rope_order(b, heads)
    return LoraPair(f"{name}.weight", np.ascontiguousarray(a, np.float32), b, scale)


def rope_order(rows: Array, n_head: int) -> Array:
    """Rows [n_head * head_dim, n] of q or k, per head, from transformers' order (halves) to llama.cpp's (neighbours).

    >>> rope_order(np.arange(4, dtype=np.float32).reshape(4, 1), n_head=1).ravel()
    array([0., 2., 1., 3.], dtype=float32)
    """
    reordered: Array = rows.reshape(n_head, 2, rows.shape[0] // n_head // 2, -1).swapaxes(1, 2).reshape(rows.shape)
    return reordered


def _config(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, "adapter_config.json")
    if not os.path.exists(path):
        run = os.path.dirname(folder)
        what = "adapter_config.json is missing" if os.path.isdir(run) else f"there is no folder {run}"
        raise MissingFileError(f"no peft adapter in {folder}: {what}")
    with open(path, "rb") as file:
        try:
            config = json.load(file)
        except ValueError as error:
            raise LoraError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise LoraError(f"{path} is not a JSON object")
    for key, plain in (("use_dora", False), ("bias", "none"), ("modules_to_save", None), ("fan_in_fan_out", False)):
        if config.get(key, plain) not in (plain, []):
            raise LoraError(f"{path}: {key}={config[key]!r} cannot be folded into a GGUF")
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise LoraError(f"{path}: {key} is set; one rank and alpha for all layers is expected")
    return config


def _number(config: dict[str, Any], key: str, folder: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise LoraError(f"{folder}: {key} in adapter_config.json is {value!r:.80}, expected a number above 0")
    return float(value)


def _tensors(path: str) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not os.path.exists(path):
        raise MissingFileError(f"no peft adapter: {path} is missing")
    try:
        return {name: np.asarray(tensor, np.float32) for name, tensor in load_file(path).items()}
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise LoraError(f"{path} is not a readable safetensors file: {error}") from None
