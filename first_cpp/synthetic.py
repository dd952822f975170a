"""Random-weight GGUF files of a known shape, for benchmarks and tests. Kernels do not look at values: latency is that
of the real model, the text is noise. Needs the gguf package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Shape:
    """The hyper-parameters of a Llama-architecture model."""

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

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


SHAPES = {
    "tiny": Shape(n_layer=6, n_embd=128, n_head=4, n_head_kv=2, n_ff=192, n_vocab=320),
    "smollm2-135m": Shape(30, 576, 9, 3, 1536, 49152, 8192, 100000.0, tied=True),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 8192, 128256, 131072, 500000.0, tied=True),
    "llama-3.2-3b": Shape(28, 3072, 24, 8, 8192, 128256, 131072, 500000.0, tied=True),
}


def write_random(path: str | os.PathLike[str], shape: Shape, type_name: str = "f32", seed: int = 0) -> None:
    """Write a random model. `type_name`: the GGUF type of the matrices, any that gguf-py can quantise; norms are F32."""
    rng = np.random.default_rng(seed)
    write_model(path, shape, _random_tensors(shape, rng), type_name, tile=shape.n_embd > 512)


def write_model(
    path: str | os.PathLike[str],
    shape: Shape,
    tensors: Iterator[tuple[str, tuple[int, ...], npt.NDArray[np.float32] | None]],
    type_name: str = "f32",
    tile: bool = False,
) -> None:
    """Write a Llama-architecture GGUF with a byte vocabulary from (name, shape, float32 data or None for random).

    With `tile`, matrices repeat one quantised random block: fast for large shapes.
    """
    import gguf

    quantised = gguf.GGMLQuantizationType[type_name.upper()]
    writer = gguf.GGUFWriter(os.fspath(path), "llama")
    writer.add_name(f"random weights ({shape.n_layer} layers)")
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_freq_base)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.n_vocab)
    _add_vocabulary(writer, shape.n_vocab)
    rng = np.random.default_rng(1)
    block = gguf.quants.quantize(rng.normal(0, 0.02, (64, 256)).astype(np.float32), quantised) if tile else None
    for name, dims, data in tensors:
        if len(dims) == 1:
            writer.add_tensor(name, np.ones(dims, np.float32) if data is None else data)
        elif block is not None:
            n_bytes = int(np.prod(dims)) // (64 * 256) * block.nbytes
            flat = np.resize(block.view(np.uint8).reshape(-1), n_bytes).reshape(*dims[:-1], -1)
            writer.add_tensor(name, flat, raw_dtype=quantised)
        else:
            values = rng.normal(0, 0.1, dims).astype(np.float32) if data is None else data
            writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and numpy shapes (rows first) of all tensors of a Llama-architecture GGUF."""
    kv = shape.n_head_kv * shape.head_dim
    yield "token_embd.weight", (shape.n_vocab, shape.n_embd)
    for il in range(shape.n_layer):
        yield f"blk.{il}.attn_norm.weight", (shape.n_embd,)
        yield f"blk.{il}.attn_q.weight", (shape.n_embd, shape.n_embd)
        yield f"blk.{il}.attn_k.weight", (kv, shape.n_embd)
        yield f"blk.{il}.attn_v.weight", (kv, shape.n_embd)
        yield f"blk.{il}.attn_output.weight", (shape.n_embd, shape.n_embd)
        yield f"blk.{il}.ffn_norm.weight", (shape.n_embd,)
        yield f"blk.{il}.ffn_gate.weight", (shape.n_ff, shape.n_embd)
        yield f"blk.{il}.ffn_up.weight", (shape.n_ff, shape.n_embd)
        yield f"blk.{il}.ffn_down.weight", (shape.n_embd, shape.n_ff)
    yield "output_norm.weight", (shape.n_embd,)
    if not shape.tied:
        yield "output.weight", (shape.n_vocab, shape.n_embd)


def _random_tensors(
    shape: Shape, rng: np.random.Generator
) -> Iterator[tuple[str, tuple[int, ...], npt.NDArray[np.float32] | None]]:
    large = shape.n_embd > 512
    for name, dims in tensor_shapes(shape):
        if len(dims) == 1:
            yield name, dims, rng.uniform(0.5, 1.5, dims).astype(np.float32)
        else:
            yield name, dims, None if large else rng.normal(0, 0.1, dims).astype(np.float32)


def _add_vocabulary(writer: object, n_vocab: int) -> None:
    """A SentencePiece vocabulary of single bytes, so that any text can be tokenised; the rest are filler words."""
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{b:02X}>".encode() for b in range(256))]
    types = [2, 3, 3, *[6] * 256]  # unknown, control, control, byte
    tokens += [f"w{i}".encode() for i in range(n_vocab - len(tokens))]
    types += [1] * (n_vocab - len(types))
    writer.add_tokenizer_model("llama")  # type: ignore[attr-defined]
    writer.add_token_list(tokens)  # type: ignore[attr-defined]
    writer.add_token_scores([0.0] * n_vocab)  # type: ignore[attr-defined]
    writer.add_token_types(types)  # type: ignore[attr-defined]
    writer.add_bos_token_id(1)  # type: ignore[attr-defined]
    writer.add_eos_token_id(2)  # type: ignore[attr-defined]
