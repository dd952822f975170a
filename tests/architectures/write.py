"""Writes a tiny random model of an architecture, and copies of it in which layers add nothing."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Collection, Mapping

import gguf
import numpy as np

from first_cpp.gguf.synthetic import add_vocabulary

from .shapes import Value, hyperparameters, is_absent
from .tensors import list_tensors


def write_tiny(path: pathlib.Path, architecture: str) -> None:
    """Write a GGUF of `architecture` with random F32 weights."""
    values = hyperparameters(architecture)
    _write(path, architecture, values, {})
    shapes = {name: shape for name, shape in list_tensors(path).items() if not is_absent(architecture, name)}
    _write(path, architecture, values, shapes)


def _write(path: pathlib.Path, architecture: str, values: Mapping[str, Value], shapes: Mapping[str, tuple[int, ...]]) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        _add(writer, key, value)
    add_vocabulary(writer, int(str(values[f"{architecture}.vocab_size"])))
    for name, shape in shapes.items():
        writer.add_tensor(name, _random(name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
        return
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders[type(value)](key, value)


def _random(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that keep activations of order one. They depend on the name alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("ssm_a"):
        return -rng.uniform(0.5, 2, shape).astype(np.float32)  # a state decays
    if name.endswith(".bias"):
        return rng.normal(0, 0.1, shape).astype(np.float32)
    if "norm" in name or len(shape) == 1 or name.endswith("scale"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.startswith("token_embd"):
        return rng.normal(0, 1, shape).astype(np.float32)
    return rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)


# What a layer adds to the residual passes through these; what comes after them is linear or a norm.
_ADDS = re.compile(
    r"(attn_output|attn_out|attn_output_b|ffn_down|ffn_down_exps|ffn_down_shexp|ffn_down_chexps|ssm_out|shortconv\.out_proj"
    r"|time_mix_output|channel_mix_value|proj)\.(weight|bias|lora_b)"
    r"|(post_attention_norm|post_ffw_norm|layer_output_norm|attn_output_norm)\.bias"
)
_SCALE = "layer_output_scale.weight"
"""A factor of the sum (gemma4), or of the embedding as a term of it (talkie)."""


def write_zeroed(model: pathlib.Path, out: pathlib.Path, architecture: str, layers: Collection[int]) -> None:
    """Copy `model` with everything that `layers` add to the residual set to zero, and no factor of the residual."""
    shutil.copyfile(model, out)
    with open(out, "r+b") as file:
        for tensor in gguf.GGUFReader(os.fspath(model)).tensors:
            match = re.match(r"blk\.(\d+)\.(.*)", tensor.name)
            if not match or int(match[1]) not in layers:
                continue
            file.seek(tensor.data_offset)
            if _ADDS.fullmatch(match[2]):
                file.write(bytes(tensor.n_bytes))
            elif match[2] == _SCALE:
                file.write(np.float32(architecture != "talkie").tobytes())


def uniform(model: pathlib.Path, values: Mapping[str, Value]) -> bool:
    """Whether all layers have the same tensors and no hyper-parameter is listed by layer: then a pruned file is a model."""
    layers: dict[str, set[tuple[str, tuple[int, ...]]]] = {}
    for tensor in gguf.GGUFReader(os.fspath(model)).tensors:
        if match := re.match(r"blk\.(\d+)\.(.*)", tensor.name):
            layers.setdefault(match[1], set()).add((match[2], tuple(tensor.shape)))
    by_layer = any(isinstance(value, list) and len(value) == len(layers) for value in values.values())
    return not by_layer and len({frozenset(layer) for layer in layers.values()}) == 1
