"""Routers from a safetensors file: tensors weight and bias, settings in its metadata."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from .._version import __version__
from ..errors import MissingFileError, RouterError
from .model_file import normal_path
from .routers import MAX_TEXT, Base, Routers, check_values

DEFAULT_SKIP = 0.25


def read_safetensors(path: str, base: Base, norm_eps: float, skip: float | None) -> Routers:
    """Routers for `base` from `path`, a file or a folder with routers.safetensors.

    Metadata, all text: norm_eps (default: the base's), skip (recommended share, default 0.25), skippable (JSON list of
    bools, default all), base.fingerprint (checked when present), train.* (free). Raises RouterError naming what is wrong.
    """
    path = routers_file(path)
    tensors, metadata = _load(path)
    weight, bias = _tensor(tensors, "weight", path), _tensor(tensors, "bias", path)
    expected = {"weight": [base.n_layer, base.n_embd], "bias": [base.n_layer]}
    for name, tensor in (("weight", weight), ("bias", bias)):
        if list(tensor.shape) != expected[name]:
            raise RouterError(f"{path}: {name} has shape {list(tensor.shape)}, this model needs {expected[name]}")
    _check_texts(metadata, path)
    if metadata.get("base.fingerprint", base.fingerprint) != base.fingerprint:
        raise RouterError(
            f"{path}: made for another model: base.fingerprint is {metadata['base.fingerprint']}, "
            f"this model's {base.fingerprint}"
        )
    routers = Routers(
        base=base,
        weight=weight,
        bias=bias,
        norm_eps=_number(metadata, "norm_eps", norm_eps, path),
        skippable=_skippable(metadata, base.n_layer, path),
        skip=_number(metadata, "skip", DEFAULT_SKIP, path) if skip is None else skip,
        writer=f"first_cpp {__version__}",
        train={key.removeprefix("train."): value for key, value in metadata.items() if key.startswith("train.")},
    )
    check_values(routers, path)
    return routers


def routers_file(path: str) -> str:
    """The file meant by `path`: itself, or routers.safetensors in the folder of a training run."""
    path = normal_path(path)
    return os.path.join(path, "routers.safetensors") if os.path.isdir(path) else path


def _check_texts(metadata: dict[str, str], path: str) -> None:
    """The limits that readers of the GGUF set."""
    for key, value in metadata.items():
        if key.startswith("train.") and ("\0" in key + value or len(value.encode()) > MAX_TEXT):
            raise RouterError(f"{path}: metadata {key} has a NUL byte or more than {MAX_TEXT} bytes")


def _load(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not os.path.exists(path):
        raise MissingFileError(f"router file does not exist: {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, TypeError) as error:
        with open(path, "rb") as stream:
            head = stream.read(4)
        if head[:2] == b"PK" or head[:1] == b"\x80":
            raise RouterError(
                f"{path} is a pickle (.pt) file: loading one can run code, so only safetensors are read"
            ) from None
        raise RouterError(f"{path} is not a readable safetensors file: {error}") from None


def _tensor(tensors: dict[str, Any], name: str, path: str) -> Any:
    if name not in tensors:
        raise RouterError(f"{path}: tensor {name!r} is missing; found {sorted(tensors)}")
    tensor = tensors[name]
    if tensor.dtype not in (np.float32, np.float16):
        raise RouterError(f"{path}: tensor {name!r} is {tensor.dtype}, expected float32 or float16")
    return np.ascontiguousarray(tensor, dtype=np.float32)


def _number(metadata: dict[str, str], key: str, default: float, path: str) -> float:
    try:
        return float(metadata.get(key, default))
    except ValueError:
        raise RouterError(f"{path}: metadata {key} is {metadata[key]!r}, expected a number") from None


def _skippable(metadata: dict[str, str], n_layer: int, path: str) -> tuple[bool, ...]:
    if "skippable" not in metadata:
        return (True,) * n_layer
    try:
        value = json.loads(metadata["skippable"])
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, list) or len(value) != n_layer or not all(isinstance(v, bool) for v in value):
        raise RouterError(
            f"{path}: metadata skippable is {metadata['skippable']!r:.80}, expected a JSON list of {n_layer} bools"
        )
    return tuple(value)
