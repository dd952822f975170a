"""A LoRA of peft in GGUF terms: which tensor each pair belongs to, and how its rows are ordered there."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
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
PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "modules_to_save": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
    "use_bdlora": None,
    **dict.fromkeys(("use_dora", "use_qalora", "fan_in_fan_out", "lora_bias"), False),
}
"""What adapter_config.json says of a plain LoRA, whose whole effect is W + scale * b @ a."""
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of a LoRA that change the weights of the base, to which the adapter then belongs."""


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
    """The pairs in the adapter folder of a training run, for this model. Raises as `read_lora` and `check_pairs` do."""
    n_head = _heads(model.first, model.key("attention.head_count"), 0)
    n_head_kv = _heads(model.first, model.key("attention.head_count_kv"), n_head)
    pairs = read_lora(os.path.join(run, "adapter"), model.architecture, model.n_layer, n_head, n_head_kv)
    check_pairs(pairs, {tensor.name: tensor.shape for _, tensor in model.tensors()}, model.path)
    return pairs


def check_pairs(pairs: Iterable[LoraPair], shapes: Mapping[str, Sequence[int]], model: str) -> None:
    """Raise LoraError for a pair whose tensor is not among `shapes`, or has another one. model: which errors name."""
    for pair in pairs:
        shape, found = [pair.a.shape[1], pair.b.shape[0]], shapes.get(pair.name)
        if found is None or list(found) != shape:
            has = "no such tensor" if found is None else list(found)
            raise LoraError(f"the LoRA changes {pair.name} of shape {shape}, {model} has {has}")


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
    keys = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(keys[architecture], n_layer)
    tensors = _tensors(os.path.join(folder, "adapter_model.safetensors"))
    pairs = []
    for key in sorted(tensors):
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_A\.weight", key)
        if found is None:
            if not key.endswith(".lora_B.weight"):
                raise LoraError(
                    f"{folder}: tensor {key} is not a LoRA weight of a linear layer: what was trained of embeddings, norms or "
                    "biases cannot be folded into a GGUF"
                )
            continue
        name = names.get_name(text_name(found[1]))
        other = key.replace(".lora_A.", ".lora_B.")
        if name is None or other not in tensors:
            raise LoraError(f"{folder}: {key} has {'no lora_B' if name else 'no place in a ' + architecture + ' GGUF'}")
        where, heads = f"{folder}: {key}", None
        if architecture in PERMUTED and ".attn_" in name:
            heads = {"q": n_head, "k": n_head_kv}.get(name[-1])
        _check_matrices(tensors[key], tensors[other], where)
        scale = _scale(config, found[1], len(tensors[key]), where)
        pairs.append(_pair(name, tensors[key], tensors[other], scale, heads, where))
    if not pairs:
        raise LoraError(f"{folder}: no LoRA weights")
    return pairs


def text_name(module: str) -> str:
    """The name that a module of a model that sees has in the model of its text alone, whose GGUF is the language model.

    >>> text_name("model.language_model.layers.0.mlp.up_proj"), text_name("language_model.lm_head")
    ('model.layers.0.mlp.up_proj', 'lm_head')
    """
    return re.sub(r"^(model\.)?language_model\.(model\.)?", r"\1\2", module)


def check_architecture(architecture: str) -> None:
    """Raise LoraError for an architecture whose weights a LoRA of peft cannot be folded into."""
    if architecture not in PERMUTED | AS_IS:
        raise LoraError(
            f"the order of q and k rows in {architecture} models is not known; supported: {sorted(PERMUTED | AS_IS)}"
        )


def _check_matrices(a: Array, b: Array, where: str) -> None:
    if a.ndim != 2 or b.ndim != 2 or not 0 < a.shape[0] == b.shape[1]:
        raise LoraError(f"{where} of shape {list(a.shape)} and its lora_B of {list(b.shape)} are no pair")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise LoraError(f"{where} or its lora_B has values that are not finite: its training went wrong")


def _pair(name: str, a: Array, b: Array, scale: float, heads: int | None, where: str) -> LoraPair:
    """heads: of the tensor, where its rows are stored in another order than transformers'."""
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
    for key, plain in PLAIN.items():
        if config.get(key, plain) not in (plain, [], None):
            raise LoraError(f"{path}: {key}={config[key]!r:.80} cannot be folded into a GGUF")
    if str(start := config.get("init_lora_weights")).lower().startswith(CHANGE_THE_BASE):
        raise LoraError(
            f"{path}: init_lora_weights={start!r} changed the base as training began, and the adapter needs that base: save it "
            "for the original one, in peft by save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            raise LoraError(f"{path}: {key} is {config[key]!r:.80}, expected an object")
    return config


def _scale(config: dict[str, Any], module: str, n_rank: int, where: str) -> float:
    """The factor of a module's b @ a. n_rank: the rank of its weights."""
    rank = _number(config, "rank_pattern", "r", module, where)
    if rank != n_rank:
        raise LoraError(f"{where} has rank {n_rank}, adapter_config.json says {rank:g} (r, rank_pattern)")
    alpha = _number(config, "alpha_pattern", "lora_alpha", module, where)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _number(config: dict[str, Any], patterns: str, key: str, module: str, where: str) -> float:
    """The rank or alpha of a module: of the first pattern that its name ends with, as peft matches, else that of all."""
    value = config.get(key)
    for pattern, of_pattern in (config.get(patterns) or {}).items():
        if _matches(pattern, module, f"{where}: {patterns}"):
            key, value = patterns, of_pattern
            break
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise LoraError(f"{where}: {key} in adapter_config.json is {value!r:.80}, expected a number above 0")
    return float(value)


def _matches(pattern: str, module: str, where: str) -> bool:
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except re.error as error:
        raise LoraError(f"{where} has {pattern!r:.80}, which is no regular expression: {error}") from None


def _tensors(path: str) -> dict[str, Array]:
    from safetensors import SafetensorError, deserialize

    if not os.path.exists(path):
        raise MissingFileError(f"no peft adapter: {path} is missing")
    with open(path, "rb") as file:
        data = file.read()
    try:
        found: list[tuple[str, dict[str, Any]]] = deserialize(data)  # type: ignore[no-untyped-call]  # safetensors' own lacks types
        return {name: _values(tensor) for name, tensor in found}
    except (SafetensorError, KeyError, ValueError) as error:
        raise LoraError(f"{path} is not a readable safetensors file: {error}") from None


def _values(tensor: dict[str, Any]) -> Array:
    """A tensor of a safetensors file; NumPy has no bf16, which is the upper half of a float32."""
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    if (kind := tensor["dtype"]) not in kinds:
        raise ValueError(f"a tensor is of type {kind}, expected {', '.join(kinds)}")
    stored: npt.NDArray[Any] = np.frombuffer(tensor["data"], kinds[kind]).reshape(tensor["shape"])
    values: Array = (stored.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else stored.astype(np.float32)
    return values
