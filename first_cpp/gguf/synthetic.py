"""Random-weight GGUF files of a known shape, for benchmarks and tests. Needs the gguf package.

Kernels do not look at values: latency is that of the real model, the text is noise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _ext
from ..errors import FirstCppError
from .new_file import new_path

Tensor = tuple[str, tuple[int, ...], npt.NDArray[np.float32] | None]
"""Name, numpy shape (rows first), and values; None for random ones."""

_TILE_ROWS = 256


class SyntheticError(FirstCppError, ValueError):
    """A shape or a file type that cannot be written."""


@dataclass(frozen=True)
class Shape:
    """The hyper-parameters of a model with Llama's layers; "qwen3" adds norms on the heads of q and k."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int
    n_ctx: int = 2048
    rope_freq_base: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = False
    """The output matrix is the token embedding."""
    architecture: str = "llama"
    head_dim: int = 0
    """Values per head; 0: n_embd / n_head."""

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.n_embd // self.n_head)

    @property
    def large(self) -> bool:
        """Too large for every matrix to have random values of its own."""
        return self.n_embd > 512


# From the models' own config.json files.
SHAPES = {
    "tiny": Shape(n_layer=6, n_embd=128, n_head=4, n_head_kv=2, n_ff=192, n_vocab=320),
    "smollm2-135m": Shape(30, 576, 9, 3, 1536, 49152, 8192, 100000.0, tied=True),
    "smollm2-360m": Shape(32, 960, 15, 5, 2560, 49152, 8192, 100000.0, tied=True),
    "smollm2-1.7b": Shape(24, 2048, 32, 32, 8192, 49152, 8192, 130000.0, tied=True),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 8192, 128256, 131072, 500000.0, tied=True),
    "llama-3.2-3b": Shape(28, 3072, 24, 8, 8192, 128256, 131072, 500000.0, tied=True),
    "llama-3-8b": Shape(32, 4096, 32, 8, 14336, 128256, 8192, 500000.0),
    "qwen3-0.6b": Shape(28, 1024, 16, 8, 3072, 151936, 40960, 1e6, 1e-6, True, "qwen3", 128),
    "qwen3-1.7b": Shape(28, 2048, 16, 8, 6144, 151936, 40960, 1e6, 1e-6, True, "qwen3", 128),
    "qwen3-4b": Shape(36, 2560, 32, 8, 9728, 151936, 40960, 1e6, 1e-6, True, "qwen3", 128),
    "qwen3-8b": Shape(36, 4096, 32, 8, 12288, 151936, 40960, 1e6, 1e-6, False, "qwen3", 128),
}

# File type -> type of the matrices. llama.cpp's quantizer gives the output matrix more bits (src/llama-quant.cpp).
FILE_TYPES = {
    **{name: name for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")},
    "q4_k_m": "q4_K",
    "q5_k_m": "q5_K",
    "q6_k": "q6_K",
    "iq4_nl": "iq4_nl",
    "q3_k_m": "q3_K",
    "q2_k": "q2_K",
}
# for rows that 256 does not divide
_FALLBACK = {"q2_K": "iq4_nl", "q3_K": "iq4_nl", "q4_K": "q5_0", "q5_K": "q5_1", "q6_K": "q8_0"}


def write_random(path: str | os.PathLike[str], shape: Shape, file_type: str = "f32", seed: int = 0) -> None:
    """Write a random model of one of the FILE_TYPES, the bits mixed over its matrices as llama.cpp's quantizer mixes them.

    Raises SyntheticError for another file type, OutputError as `new_file` does.

    >>> from first_cpp.gguf.model_file import ModelFile
    >>> write_random("random.gguf", SHAPES["tiny"], "q8_0", seed=1)
    >>> ModelFile.open("random.gguf").n_layer
    6
    """
    write_model(path, shape, _random_tensors(shape, np.random.default_rng(seed)), file_type)


def write_model(path: str | os.PathLike[str], shape: Shape, tensors: Iterator[Tensor], file_type: str = "f32") -> None:
    """Write a GGUF with a byte vocabulary from tensors; matrices without values repeat one random block."""
    import gguf

    if file_type not in FILE_TYPES:
        raise SyntheticError(f"file type {file_type!r} cannot be written; allowed: {', '.join(FILE_TYPES)}")
    with new_path(path) as part:
        writer = gguf.GGUFWriter(part, shape.architecture)
        _add_metadata(writer, shape)
        _add_tensors(writer, shape, tensors, file_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_tensors(writer: Any, shape: Shape, tensors: Iterator[Tensor], file_type: str) -> None:
    import gguf

    blocks: dict[str, npt.NDArray[np.uint8]] = {}
    for name, dims, values in tensors:
        if len(dims) == 1:
            writer.add_tensor(name, np.ones(dims, np.float32) if values is None else values)
            continue
        kind = matrix_type(name, dims[-1], shape, file_type)
        if values is None:
            if kind not in blocks:
                blocks[kind] = _random_block(kind)
            row_bytes = len(_ext.quantize(kind, np.zeros((1, dims[-1]), np.float32)))
            data = np.resize(blocks[kind], dims[0] * row_bytes).reshape(dims[0], row_bytes)
        else:
            data = np.frombuffer(_ext.quantize(kind, np.ascontiguousarray(values, np.float32)), np.uint8).reshape(dims[0], -1)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind.upper()])


def matrix_type(name: str, row: int, shape: Shape, file_type: str) -> str:
    """The ggml type of a matrix with rows of `row` values (the rules of llama.cpp's src/llama-quant.cpp)."""
    kind = FILE_TYPES[file_type]
    if kind in ("f32", "f16", "bf16"):
        return kind
    if name == "output.weight" or (shape.tied and name == "token_embd.weight"):
        kind = kind if kind == "q8_0" else "q6_K"
    elif name.startswith("blk."):
        kind = _type_in_layer(name.split(".")[2], int(name.split(".")[1]), shape, file_type)
    return kind if row % _ext.block_size(kind) == 0 else _FALLBACK[kind]


def _type_in_layer(matrix: str, layer: int, shape: Shape, file_type: str) -> str:
    """The ggml type of a layer's matrix: some have more bits than the rest, in some layers."""
    n, grouped = shape.n_layer, shape.n_head >= 4 * shape.n_head_kv
    first = layer < n // 8
    spread = first or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
    more = {
        "q4_k_m": {"attn_v": "q6_K", "ffn_down": "q6_K"} if spread else {},
        "q5_k_m": {"attn_v": "q6_K", "ffn_down": "q6_K"} if spread else {},
        "iq4_nl": {**({"ffn_down": "q5_K"} if first else {}), **({"attn_v": "q5_K"} if grouped else {})},
        "q3_k_m": {
            "attn_v": "q5_K" if layer < 2 else "q4_K",
            "ffn_down": "q5_K" if layer < n // 16 else "q4_K",
            "attn_output": "q4_K",
        },
        "q2_k": {"attn_v": "q4_K" if grouped else "q3_K", "ffn_down": "q3_K", "attn_output": "q3_K"},
    }
    return more.get(file_type, {}).get(matrix, FILE_TYPES[file_type])


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and numpy shapes (rows first) of all tensors."""
    q, kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    yield "token_embd.weight", (shape.n_vocab, shape.n_embd)
    for il in range(shape.n_layer):
        yield f"blk.{il}.attn_norm.weight", (shape.n_embd,)
        yield f"blk.{il}.attn_q.weight", (q, shape.n_embd)
        yield f"blk.{il}.attn_k.weight", (kv, shape.n_embd)
        yield f"blk.{il}.attn_v.weight", (kv, shape.n_embd)
        yield f"blk.{il}.attn_output.weight", (shape.n_embd, q)
        if shape.architecture == "qwen3":
            yield f"blk.{il}.attn_q_norm.weight", (shape.head_dim,)
            yield f"blk.{il}.attn_k_norm.weight", (shape.head_dim,)
        yield f"blk.{il}.ffn_norm.weight", (shape.n_embd,)
        yield f"blk.{il}.ffn_gate.weight", (shape.n_ff, shape.n_embd)
        yield f"blk.{il}.ffn_up.weight", (shape.n_ff, shape.n_embd)
        yield f"blk.{il}.ffn_down.weight", (shape.n_embd, shape.n_ff)
    yield "output_norm.weight", (shape.n_embd,)
    if not shape.tied:
        yield "output.weight", (shape.n_vocab, shape.n_embd)


def _random_tensors(shape: Shape, rng: np.random.Generator) -> Iterator[Tensor]:
    for name, dims in tensor_shapes(shape):
        if len(dims) == 1:
            yield name, dims, rng.uniform(0.5, 1.5, dims).astype(np.float32)
        else:
            yield name, dims, None if shape.large else rng.normal(0, 0.1, dims).astype(np.float32)


def _random_block(kind: str) -> npt.NDArray[np.uint8]:
    values = np.random.default_rng(1).normal(0, 0.02, (_TILE_ROWS, 256)).astype(np.float32)
    return np.frombuffer(_ext.quantize(kind, values), np.uint8)


def _add_metadata(writer: Any, shape: Shape) -> None:
    add = {
        "name": f"random weights ({shape.n_layer} layers)",
        "block_count": shape.n_layer,
        "context_length": shape.n_ctx,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "head_count": shape.n_head,
        "head_count_kv": shape.n_head_kv,
        "key_length": shape.head_dim,
        "value_length": shape.head_dim,
        "layer_norm_rms_eps": shape.norm_eps,
        "rope_freq_base": shape.rope_freq_base,
        "rope_dimension_count": shape.head_dim,
        "vocab_size": shape.n_vocab,
    }
    for key, value in add.items():
        getattr(writer, f"add_{key}")(value)
    add_vocabulary(writer, shape.n_vocab)


def add_vocabulary(writer: Any, n_vocab: int) -> None:
    """A SentencePiece vocabulary of single bytes, so that any text can be tokenised; the rest are words of no use.

    writer: a gguf.GGUFWriter.
    """
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{b:02X}>".encode() for b in range(256))]
    types = [2, 3, 3, *[6] * 256]  # unknown, control, control, byte
    tokens += [f"w{i}".encode() for i in range(n_vocab - len(tokens))]
    types += [1] * (n_vocab - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
