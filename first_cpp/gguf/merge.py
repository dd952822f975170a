"""LoRA folded into the base's weights, requantised by llama.cpp, routers in the metadata: one file, no run-time cost."""

from __future__ import annotations

import ctypes
import os
import tempfile

import llama_cpp
import numpy as np

from .._ext import GgufFile
from ..errors import FirstCppError
from .embed import adapter_file, base_of, embed, read_routers_for
from .lora import LoraError, LoraPair, read_lora
from .model_file import normal_path, open_gguf, open_model
from .new_file import check_output, new_file
from .pruned import quiet_llama_cpp
from .read_safetensors import routers_file

MAX_HEADS = 65536


class QuantizeError(FirstCppError, RuntimeError):
    """llama.cpp's quantizer refused."""


def quantisation(name: str) -> int:
    """llama.cpp's number for a file type: Q4_0, Q4_K_M, Q8_0, F16 ... Raises LoraError with the names there are."""
    prefixes = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
    known = {
        key.removeprefix(prefix): value
        for key, value in vars(llama_cpp).items()
        for prefix in prefixes
        if key.startswith(prefix) and isinstance(value, int)
    }
    if name.upper() not in known:
        raise LoraError(f"--quantize {name} is not a type of llama.cpp; known: {', '.join(sorted(known))}")
    return known[name.upper()]


def merge(
    run: str,
    model: str,
    out: str,
    *,
    quantize: str | None = None,
    skip: float | None = None,
    force: bool = False,
    quiet: bool = False,
) -> None:
    """Write `out`: `model` with the LoRA and the routers of a training run.

    Without `quantize` the folded tensors are F32. Raises errors of first_cpp; nothing stands under `out` on any error.
    """
    run, model, out = normal_path(run), normal_path(model), normal_path(out)
    ftype = None if quantize is None else quantisation(quantize)
    parts = open_model(model)
    if len(parts) > 1:
        raise LoraError(f"{model} is split in {len(parts)} files; merge it with llama-gguf-split first")
    pairs = read_run_lora(run, parts)
    n_bytes = sum(4 * int(np.prod(tensor.shape)) for tensor in parts[0][1].tensors())
    check_output(out, [model, os.path.join(run, "routers.safetensors")], force, n_bytes)
    folder = os.path.dirname(os.path.abspath(out))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".merge-") as work:
        merged = os.path.join(work, "merged.gguf")
        write_merged(model, pairs, merged)
        if ftype is not None:
            small = os.path.join(work, "quantised.gguf")
            requantise(merged, small, ftype)
            os.remove(merged)
            merged = small
        embed(run, merged, out, skip=skip, force=force, replace=True, quiet=quiet)


def read_run_lora(run: str, parts: list[tuple[str, GgufFile]]) -> list[LoraPair]:
    """The LoRA pairs in a training run's adapter folder, for this base."""
    base, _ = base_of(parts)
    file = parts[0][1]
    n_head = _heads(file, f"{base.architecture}.attention.head_count", 0)
    n_head_kv = _heads(file, f"{base.architecture}.attention.head_count_kv", n_head)
    return read_lora(os.path.join(run, "adapter"), base.architecture, base.n_layer, n_head, n_head_kv)


def _heads(file: GgufFile, key: str, default: int) -> int:
    if not file.kind(key) and default:
        return default
    found = int(file.get(key)) if file.kind(key) == "u32" else 0
    if not 0 < found <= MAX_HEADS:
        raise LoraError(f"{key} is {found or file.kind(key) or 'missing'}, expected one number of heads for all layers")
    return found


def write_merged(model: str, pairs: list[LoraPair], out: str) -> None:
    """Copy `model` with W + scale * b @ a, in F32, for each pair's tensor; all others keep their bytes."""
    source = open_gguf(model)
    before = {tensor.name: tensor for tensor in source.tensors()}
    folded = {pair.name: pair for pair in pairs}
    for name, pair in folded.items():
        shape = [pair.a.shape[1], pair.b.shape[0]]
        if name not in before or list(before[name].shape) != shape:
            found = list(before[name].shape) if name in before else "no such tensor"
            raise LoraError(f"the LoRA changes {name} of shape {shape}, {model} has {found}")
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
        target.write(b"\0" * (-target.tell() % source.alignment))


def fold(data: bytes, type_name: str, pair: LoraPair) -> bytes:
    """The bytes of W + scale * b @ a in F32."""
    import gguf

    quantised = gguf.GGMLQuantizationType[type_name.upper()]
    rows = np.frombuffer(data, np.uint8).reshape(pair.b.shape[0], -1)
    weight = gguf.quants.dequantize(rows, quantised).astype(np.float32)
    return bytes((weight + np.float32(pair.scale) * (pair.b @ pair.a)).astype(np.float32).tobytes())


def requantise(model: str, out: str, ftype: int) -> None:
    """Quantise by llama.cpp; what is quantised already is quantised again."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.allow_requantize = True
    with quiet_llama_cpp():
        failed = llama_cpp.llama_model_quantize(os.fsencode(model), os.fsencode(out), ctypes.byref(params))
    if failed:
        raise QuantizeError(f"llama.cpp could not quantise {model}")


def write_lora_sidecar(run: str, model: str, out: str, *, skip: float | None = None, force: bool = False) -> None:
    """Write `out`: a GGUF adapter with routers and LoRA in F16, which llama.cpp's own LoRA loader accepts."""
    run, model, out = normal_path(run), normal_path(model), normal_path(out)
    parts = open_model(model)
    pairs = read_run_lora(run, parts)
    routers = read_routers_for(run, parts, skip)
    data = [(f"{pair.name}.{part}", matrix) for pair in pairs for part, matrix in (("lora_a", pair.a), ("lora_b", pair.b))]
    check_output(out, [*(path for path, _ in parts), routers_file(run)], force, sum(matrix.nbytes for _, matrix in data))
    file = adapter_file(routers)
    file.set_str("adapter.type", "lora")
    file.set_f32("adapter.lora.alpha", pairs[0].scale * pairs[0].a.shape[0])  # llama.cpp divides by the rank
    for name, matrix in data:
        file.add_tensor_f16(name, matrix.shape[1], matrix.shape[0])
    metadata = file.metadata()
    with new_file(out) as target:
        target.write(metadata)
        for _, matrix in data:
            target.write(matrix.astype(np.float16).tobytes())
            target.write(b"\0" * (-target.tell() % file.alignment))
