"""Routers into a copy of the base model, or into a side file that may carry a LoRA too."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from .._ext import GgufFile
from ..errors import ModelFileError, RouterError
from .file_progress import Advance, file_progress
from .lora import read_run_lora
from .model_file import ModelFile, normal_path
from .new_file import check_output, new_file
from .router_format import WRITER, add_routers, read_safetensors, router_keys, routers_file
from .routers import Routers, check_base, check_values

CHUNK = 4 << 20
"""Bytes copied at once."""


def embed(
    routers: Routers | str | os.PathLike[str],
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    skip: float | None = None,
    force: bool = False,
    replace: bool = False,
    quiet: bool = False,
    advance: Advance | None = None,
) -> None:
    """Write `out`: the base model with routers in its metadata, tensor bytes untouched.

    routers: the routers, a safetensors file of them, or the folder of a training run. skip: the share to recommend, in place of
    what they say. force: an existing `out` may be replaced. replace: so may routers that the model already carries.
    quiet: no progress bar. advance: told of every byte, in place of a bar. Raises errors of `first_cpp.errors` for inputs that
    do not fit, OutputError for an output that must not be written; on any error `out` is what it was before.

    >>> from first_cpp import load_routers
    >>> embed(load_routers("model-first.gguf"), "model.gguf", "half.gguf", skip=0.5, quiet=True)
    >>> load_routers("half.gguf").skip
    0.5
    """
    base, out = ModelFile.open(model), normal_path(out)
    if len(base.files) > 1:
        raise ModelFileError(
            f"{base.path} is split in {len(base.files)} files; merge it with llama-gguf-split, or write a --sidecar"
        )
    if (old := router_keys(base.first)) and not replace:
        raise RouterError(f"{base.path} already carries routers; --replace puts the new ones in their place")
    size = os.path.getsize(base.path)
    check_output(out, [base.path, *_input(routers)], force, size)
    new = routers_for(routers, base, skip)
    data_offset = base.first.data_offset
    for key in old:
        base.first.remove(key)
    add_routers(base.first, new)
    bar = file_progress(size - data_offset, quiet) if advance is None else contextlib.nullcontext(advance)
    with bar as step, new_file(out) as target, open(base.path, "rb") as source:
        target.write(base.first.metadata())
        source.seek(data_offset)
        _copy(source, target, step)


def write_sidecar(
    routers: Routers | str | os.PathLike[str],
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    skip: float | None = None,
    force: bool = False,
) -> None:
    """Write `out`: a GGUF of type "adapter" with the routers alone. Arguments and errors are those of `embed`.

    >>> from first_cpp import load_routers
    >>> write_sidecar(load_routers("model-first.gguf"), "model.gguf", "side.gguf")
    >>> load_routers("side.gguf").weight.shape
    (6, 128)
    """
    base, out = ModelFile.open(model), normal_path(out)
    check_output(out, [*base.paths, *_input(routers)], force, 1 << 20)
    file = side_file(routers_for(routers, base, skip))
    with new_file(out) as target:
        target.write(file.metadata())


def write_lora_sidecar(
    run: str | os.PathLike[str],
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    skip: float | None = None,
    force: bool = False,
) -> None:
    """Write `out`: a GGUF adapter with the routers and the LoRA (F16) of a training run, which llama.cpp's LoRA loader takes.

    Raises LoraError for a LoRA that does not fit, else as `embed` does.

    >>> write_lora_sidecar("run/", "SmolLM2-135M-Instruct.Q4_1.gguf", "adapter.gguf")  # doctest: +SKIP
    """
    run, base, out = normal_path(run), ModelFile.open(model), normal_path(out)
    pairs = read_run_lora(run, base)
    routers = routers_for(run, base, skip)
    alpha = pairs[0].scale * pairs[0].a.shape[0]  # one for all, which llama.cpp divides by each rank
    data = [
        (f"{pair.name}.{part}", matrix)
        for pair in pairs
        for part, matrix in (("lora_a", pair.a), ("lora_b", pair.b * np.float32(pair.scale * pair.a.shape[0] / alpha)))
    ]
    check_output(out, [*base.paths, *_input(run)], force, sum(matrix.nbytes for _, matrix in data))
    file = side_file(routers)
    _add_lora(file, alpha, data)
    with new_file(out) as target:
        target.write(file.metadata())
        for _, matrix in data:
            target.write(matrix.astype(np.float16).tobytes())
            target.write(b"\0" * (-target.tell() % file.alignment))


def side_file(routers: Routers) -> GgufFile:
    """A GGUF of type "adapter" that carries the routers, in memory.

    >>> from first_cpp import load_routers
    >>> side_file(load_routers("model-first.gguf")).get("general.type")
    b'adapter'
    """
    file = GgufFile()
    file.set_str("general.architecture", routers.base.architecture)
    file.set_str("general.type", "adapter")
    add_routers(file, routers)
    return file


def routers_for(routers: Routers | str | os.PathLike[str], model: ModelFile, skip: float | None) -> Routers:
    """Routers as they go into a file for `model`, with `skip` as the recommended share where given.

    Cost probes skip it on average, by the tolerance that their table has for it. Raises RouterError where they were made
    for another model or their table does not reach so far, and as `read_safetensors` does.

    >>> from first_cpp import load_routers
    >>> routers_for(load_routers("model-first.gguf"), ModelFile.open("model.gguf"), skip=0.5).skip
    0.5
    """
    if not isinstance(routers, Routers):
        return _recommending(read_safetensors(os.fspath(routers), model.base, model.norm_eps, skip), skip)
    check_base(routers, model.base, "the given Routers")
    new = _recommending(dataclasses.replace(routers, writer=WRITER, skip=routers.skip if skip is None else skip), skip)
    check_values(new, "the given Routers")
    return new


def _recommending(routers: Routers, skip: float | None) -> Routers:
    """With cost probes it is their tolerance that "auto" goes by, whatever share is written beside it."""
    if skip is None or (cost := routers.cost) is None:
        return routers
    if (tolerance := cost.tolerance_for(skip)) is None:
        most = max((point.share for point in cost.table), default=0.0)
        raise RouterError(f"the cost probes know no tolerance that skips {skip:g} of the layers on average, at most {most:.2g}")
    return dataclasses.replace(routers, cost=dataclasses.replace(cost, tolerance=tolerance))


def _add_lora(file: GgufFile, alpha: float, data: Sequence[tuple[str, np.ndarray]]) -> None:
    file.set_str("adapter.type", "lora")
    file.set_f32("adapter.lora.alpha", alpha)
    for name, matrix in data:
        file.add_tensor_f16(name, matrix.shape[1], matrix.shape[0])


def _input(routers: Routers | str | os.PathLike[str]) -> list[str]:
    """The file that routers are read from, where they are."""
    return [] if isinstance(routers, Routers) else [routers_file(os.fspath(routers))]


def _copy(source: BinaryIO, target: BinaryIO, advance: Advance) -> None:
    while chunk := source.read(CHUNK):
        target.write(chunk)
        advance("copying tensors", len(chunk))
