"""Routers into a copy of the base model, or into a side file."""

from __future__ import annotations

import os
from typing import BinaryIO

from .._ext import GgufFile
from ..errors import ModelFileError, RouterError
from .model_file import fingerprint, normal_path, open_model
from .new_file import check_output, new_file
from .read_safetensors import read_safetensors, routers_file
from .routers import FORMAT_VERSION, MAX_LAYERS, Base, Routers

CHUNK = 4 << 20


def embed(
    routers: str,
    model: str,
    out: str,
    *,
    skip: float | None = None,
    force: bool = False,
    replace: bool = False,
    quiet: bool = False,
) -> None:
    """Write `out`: the base model with the routers in its metadata, tensor bytes untouched.

    Raises errors of first_cpp for inputs that do not fit, OutputError for an output that must not be written; on any
    error nothing stands under `out` that was not there before.
    """
    model, out = normal_path(model), normal_path(out)
    parts = open_model(model)
    if len(parts) > 1:
        raise ModelFileError(f"{model} is split in {len(parts)} files; merge it with llama-gguf-split, or write a --sidecar")
    file = parts[0][1]
    if old := [key for key in file.keys() if key.startswith("first.")]:
        if not replace:
            raise RouterError(f"{model} already carries routers; --replace puts the new ones in their place")
        for key in old:
            file.remove(key)
    size = os.path.getsize(model)
    check_output(out, [model, routers_file(routers)], force, size)
    data_offset = file.data_offset
    _add(file, read_routers_for(routers, parts, skip))
    with new_file(out) as target, open(model, "rb") as source:
        target.write(file.metadata())
        source.seek(data_offset)
        _copy(source, target, size - data_offset, quiet)


def write_sidecar(routers: str, model: str, out: str, *, skip: float | None = None, force: bool = False) -> None:
    """Write `out`: a GGUF of type "adapter" with the routers alone. Raises as `embed` does."""
    model, out = normal_path(model), normal_path(out)
    parts = open_model(model)
    check_output(out, [*(path for path, _ in parts), routers_file(routers)], force, 1 << 20)
    read = read_routers_for(routers, parts, skip)
    with new_file(out) as target:
        target.write(adapter_file(read).metadata())


def adapter_file(routers: Routers) -> GgufFile:
    """A GGUF of type "adapter" that carries the routers, in memory."""
    file = GgufFile()
    file.set_str("general.architecture", routers.base.architecture)
    file.set_str("general.type", "adapter")
    _add(file, routers)
    return file


def base_of(parts: list[tuple[str, GgufFile]]) -> tuple[Base, float]:
    """What routers must fit, and the model's RMS-norm epsilon. Raises ModelFileError for a file without layers."""
    path, file = parts[0]

    def value(key: str, kind: str) -> float:
        if file.kind(key) != kind:
            raise ModelFileError(f"{path}: {key} is {file.kind(key) or 'missing'}, expected {kind}")
        return float(file.get(key))

    if file.kind("general.architecture") != "str":
        raise ModelFileError(f"{path}: general.architecture is missing: not a model")
    arch = file.get("general.architecture").decode()
    nextn = f"{arch}.nextn_predict_layers"
    n_layer = int(value(f"{arch}.block_count", "u32")) - (int(value(nextn, "u32")) if file.kind(nextn) else 0)
    if not 1 <= n_layer <= MAX_LAYERS:
        raise ModelFileError(f"{path}: {n_layer} layers, expected 1 to {MAX_LAYERS}")
    eps = f"{arch}.attention.layer_norm_rms_epsilon"
    base = Base(arch, n_layer, int(value(f"{arch}.embedding_length", "u32")), fingerprint(parts))
    return base, value(eps, "f32") if file.kind(eps) else 1e-5


def read_routers_for(routers: str, parts: list[tuple[str, GgufFile]], skip: float | None) -> Routers:
    """The routers in a safetensors file or run folder, for this base. Raises RouterError if they do not fit."""
    base, norm_eps = base_of(parts)
    return read_safetensors(routers, base, norm_eps, skip)


def _add(file: GgufFile, routers: Routers) -> None:
    file.set_u32("first.version", FORMAT_VERSION)
    file.set_str("first.writer", routers.writer)
    file.set_str("first.base.architecture", routers.base.architecture)
    file.set_u32("first.base.n_layer", routers.base.n_layer)
    file.set_u32("first.base.n_embd", routers.base.n_embd)
    file.set_str("first.base.fingerprint", routers.base.fingerprint)
    file.set_f32_array("first.router.weight", routers.weight.reshape(-1))
    file.set_f32_array("first.router.bias", routers.bias)
    file.set_f32("first.router.norm_eps", routers.norm_eps)
    file.set_bool_array("first.router.skippable", list(routers.skippable))
    file.set_f32("first.policy.skip", routers.skip)
    for key, value in routers.train.items():
        file.set_str(f"first.train.{key}", str(value))


def _copy(source: BinaryIO, target: BinaryIO, n_bytes: int, quiet: bool) -> None:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("copying tensors", total=n_bytes)
        while chunk := source.read(CHUNK):
            target.write(chunk)
            progress.advance(task, len(chunk))
