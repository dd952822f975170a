"""LoRA folded into the base's weights, requantised by llama.cpp, routers in the metadata: one file, no run-time cost."""

from __future__ import annotations

import functools
import os
import tempfile

import numpy as np

from .embed import embed, routers_for
from .file_progress import Advance, file_progress
from .lora import LoraError, LoraPair, check_pairs, read_run_lora
from .model_file import ModelFile, normal_path, open_gguf
from .new_file import check_output, new_file
from .quantise import check_type, quantise
from .router_format import routers_file

FOLDING, QUANTISING, COPYING = 4.0, 3.0, 1.0
"""What the parts of a merge take, as parts of one bar."""


def merge(
    run: str | os.PathLike[str],
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    quantize: str | None = None,
    skip: float | None = None,
    force: bool = False,
    quiet: bool = False,
) -> None:
    """Write `out`: `model` with the LoRA and the routers of a training run.

    run: the folder that `first-cpp train` left. quantize: llama.cpp's name of a file type; without it the folded tensors are
    F32. skip: the share to recommend. force: an existing `out` may be replaced. quiet: no progress bar. Raises errors of
    `first_cpp.errors` for inputs that do not fit, OutputError, QuantizeError; on any error `out` is what it was before.

    >>> merge("run/", "SmolLM2-135M-Instruct.Q4_1.gguf", "model-first.gguf", quantize="Q4_0")  # doctest: +SKIP
    """
    run, base, out = normal_path(run), ModelFile.open(model), normal_path(out)
    if quantize is not None:
        check_type(quantize)
    if len(base.files) > 1:
        raise LoraError(f"{base.path} is split in {len(base.files)} files; merge it with llama-gguf-split first")
    pairs, routers = read_run_lora(run, base), routers_for(run, base, skip)
    tensors = base.first.tensors()
    n_bytes = sum(4 * int(np.prod(tensor.shape)) for tensor in tensors)
    check_output(out, [base.path, routers_file(run)], force, n_bytes)
    parts = FOLDING + QUANTISING * (quantize is not None) + COPYING
    folder = os.path.dirname(os.path.realpath(out))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".merge-") as work, file_progress(parts, quiet) as advance:

        def done_by(part: float, size: float) -> Advance:
            return lambda what, more: advance(what, more * part / size)

        merged = os.path.join(work, "merged.gguf")
        write_merged(base.path, pairs, merged, done_by(FOLDING, sum(tensor.n_bytes for tensor in tensors)))
        if quantize is not None:
            small = os.path.join(work, "quantised.gguf")
            quantising = functools.partial(done_by(QUANTISING, 1), f"quantising as {quantize}")
            quantise(merged, small, quantize, quantising)
            os.remove(merged)
            merged = small
        embed(routers, merged, out, force=force, replace=True, advance=done_by(COPYING, os.path.getsize(merged)))


def write_merged(model: str, pairs: list[LoraPair], out: str, advance: Advance = lambda _what, _more: None) -> None:
    """Copy `model` with W + scale * b @ a, in F32, for each pair's tensor; all others keep their bytes.

    advance: told of the bytes read. Raises LoraError for a pair whose tensor is not there or has another shape, OutputError as
    `new_file` does.
    """
    source = open_gguf(model)
    before = {tensor.name: tensor for tensor in source.tensors()}
    folded = {pair.name: pair for pair in pairs}
    check_pairs(pairs, {name: tensor.shape for name, tensor in before.items()}, model)
    old_start = source.data_offset
    for name in folded:
        source.set_tensor_f32(name)
    metadata = source.metadata()
    with new_file(out) as target, open(model, "rb") as stream:
        target.write(metadata)
        for tensor in source.tensors():
            start = len(metadata) + tensor.offset - old_start
            target.write(b"\0" * (start - target.tell()))
            old = before[tensor.name]
            stream.seek(old.offset)
            data = stream.read(old.n_bytes)
            target.write(fold(data, old.type, folded[tensor.name]) if tensor.name in folded else data)
            advance("folding the LoRA in", old.n_bytes)
        target.write(b"\0" * (-target.tell() % source.alignment))


def fold(data: bytes, type_name: str, pair: LoraPair) -> bytes:
    """The bytes of W + scale * b @ a in F32; data, type_name: W as stored, and ggml's name of its type.

    >>> ones = np.ones((1, 2), np.float32)
    >>> np.frombuffer(fold(ones.tobytes(), "f32", LoraPair("x", a=ones, b=np.ones((1, 1), np.float32), scale=2.0)), np.float32)
    array([3., 3.], dtype=float32)
    """
    import gguf

    quantised = gguf.GGMLQuantizationType[type_name.upper()]
    rows = np.frombuffer(data, np.uint8).reshape(pair.b.shape[0], -1)
    weight = gguf.quants.dequantize(rows, quantised).astype(np.float32)
    return bytes((weight + np.float32(pair.scale) * (pair.b @ pair.a)).astype(np.float32).tobytes())
