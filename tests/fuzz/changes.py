"""Changes that break a tiny model's file: its hyper-parameters, vocabulary, tensors or bytes."""

from __future__ import annotations

import copy
import math
import pathlib
import random
import struct

from architectures.write import write_tiny
from gguf_parts import ARR, BOOL, F32, SCALARS, STR, U32, Parts, Tensor, Value, take_apart
from mutate import mutate

from first_cpp.gguf.synthetic import Shape, write_random

SHAPE = Shape(n_layer=3, n_embd=32, n_head=2, n_head_kv=1, n_ff=32, n_vocab=300)
ARCHITECTURES = ("qwen2", "qwen3moe", "gemma3", "gpt2", "deepseek2", "mamba2", "glm4moe", "gpt-oss", "falcon-h1", "rwkv7")
NUMBERS = [0, 1, 2, 3, 5, 7, 255, 256, 4096, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1]
FLOATS = [0.0, -0.0, -1.0, -1e-5, 1.0, 1e30, 1e-45, math.nan, math.inf, -math.inf]
TEXTS = [b"", b"llama", b"gpt2", b"bert", b"t5", b"rwkv", b"none", b"no_vocab", b"plamo2", b"default", b"qwen2", b"mamba",
         b"x" * 70000, b"\x1b[2J\x07", b"\xff\xfe", b"a\0b", b"{{ messages", b"yarn", b"linear", b"longrope"]  # fmt: skip

NEW = ("nextn_predict_layers", "expert_count", "expert_used_count", "expert_group_count", "vocab_size", "pooling_type",
       "rope.scaling.type", "rope.scaling.factor", "rope.dimension_count", "attention.sliding_window", "attention.key_length",
       "attention.value_length", "attention.causal", "logit_scale")  # fmt: skip
"""Hyper-parameters to add."""
NAMES = [b"", b"x" * 63, b"x" * 64, b"blk.9999.attn_norm.weight", b"blk.-1.ffn_up.weight", b"\x1b[2J"]


class Models:
    """Good tiny models, written when they are first drawn."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._found: dict[str, Parts] = {}

    def draw(self, rng: random.Random) -> tuple[str, Parts]:
        """A model's name and its parts, to be changed at will. Half of them are Llamas."""
        name = rng.choice(ARCHITECTURES) if rng.random() < 0.5 else rng.choice(["llama", "llama-bpe"])
        if name not in self._found:
            self._found[name] = self._make(name)
        return name, copy.deepcopy(self._found[name])

    def _make(self, name: str) -> Parts:
        path = self._folder / f"{name}.gguf"
        if name.startswith("llama"):
            write_random(path, SHAPE)
        else:
            write_tiny(path, name)
        parts = take_apart(path.read_bytes())
        path.unlink()
        if name.endswith("bpe"):
            _make_bpe(parts)
        return parts


def _make_bpe(parts: Parts) -> None:
    """A byte-level vocabulary with merges."""
    letters = [chr(c if 33 <= c <= 126 else 256 + c).encode() for c in range(256)]
    merges = [b"H i", b"t h", b"th e"]
    tokens = letters + [merge.replace(b" ", b"") for merge in merges]
    n = len(parts.pairs["tokenizer.ggml.tokens"].value)
    tokens += [f"w{i}".encode() for i in range(n - len(tokens))]
    parts.pairs["tokenizer.ggml.model"] = Value(STR, b"gpt2")
    parts.pairs["tokenizer.ggml.pre"] = Value(STR, b"llama-bpe")
    parts.pairs["tokenizer.ggml.tokens"] = Value(ARR, tokens, STR)
    parts.pairs["tokenizer.ggml.merges"] = Value(ARR, merges, STR)
    parts.pairs["tokenizer.ggml.token_type"] = Value(ARR, [1] * n, 5)


def change(models: Models, rng: random.Random) -> tuple[str, bytes]:
    """A model's file with one to three changes, and what they are."""
    name, parts = models.draw(rng)
    kind = rng.choices([_hyperparameter, _vocabulary, _tensor, None], [6, 3, 3, 1])[0]
    if kind is None:
        size = sum(len(tensor.data) for tensor in parts.tensors)
        raw = parts.dump()
        return f"{name}: bytes", mutate(rng, raw, len(raw) - size)
    said = [kind(parts, rng) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    return f"{name}: " + "; ".join(said), parts.dump()


def _odd(rng: random.Random, value: Value) -> Value:
    """Another value, mostly of the same type."""
    if rng.random() < 0.2:
        kind = rng.choice([*SCALARS, STR, ARR])
        if kind == ARR:
            of = rng.choice([U32, 5, F32, BOOL, STR])
            return Value(
                ARR, [rng.choice(TEXTS) if of == STR else rng.choice(NUMBERS[:8]) for _ in range(rng.choice([0, 1, 6]))], of
            )
    else:
        kind = value.kind
    if kind == ARR:
        return _odd_array(rng, value)
    if kind == STR:
        return Value(STR, rng.choice(TEXTS))
    if kind in (F32, 12):
        return Value(kind, rng.choice(FLOATS))
    return Value(kind, rng.choice(NUMBERS))


def _odd_array(rng: random.Random, value: Value) -> Value:
    values = list(value.value)
    how = rng.randrange(4)
    if how == 0 and values:
        at = rng.randrange(len(values))
        values[at] = rng.choice(TEXTS) if value.of == STR else rng.choice(FLOATS if value.of == F32 else NUMBERS)
    elif how == 1:
        values = values[: rng.choice([0, 1, len(values) // 2, max(0, len(values) - 1)])]
    elif how == 2:
        values = values + values[: rng.choice([1, 5])]
    else:
        values = values[:1] * len(values)
    return Value(ARR, values, value.of)


def _hyperparameter(parts: Parts, rng: random.Random) -> str:
    keys = [key for key in parts.pairs if not key.startswith("tokenizer.") or key == "tokenizer.ggml.token_type_count"]
    found = parts.pairs.get("general.architecture")
    architecture = found.value.decode(errors="replace") if found and found.kind == STR else "llama"
    new = [f"{architecture}.{name}" for name in NEW]
    key = rng.choice(new) if rng.random() < 0.2 else rng.choice(keys)
    if key in parts.pairs and rng.random() < 0.12:
        del parts.pairs[key]
        return f"{key} removed"
    parts.pairs[key] = _odd(rng, parts.pairs.get(key) or Value(U32, 0))
    return f"{key} = {_short(parts.pairs[key])}"


def _vocabulary(parts: Parts, rng: random.Random) -> str:
    keys = [key for key in parts.pairs if key.startswith("tokenizer.")]
    ids = ("bos", "eos", "eot", "unknown", "padding", "separator", "cls", "mask", "prefix", "suffix", "eom", "fim_pre")
    new = [f"tokenizer.ggml.{name}_token_id" for name in ids]
    new += [
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.precompiled_charsmap",
    ]
    key = rng.choice(new) if rng.random() < 0.35 or not keys else rng.choice(keys)
    how = rng.random()
    if key in parts.pairs and how < 0.15:
        del parts.pairs[key]
        return f"{key} removed"
    if "tokenizer.ggml.tokens" in parts.pairs and how < 0.3:
        tokens = parts.pairs["tokenizer.ggml.tokens"]
        if tokens.kind == ARR and tokens.of == STR and tokens.value:
            token = rng.choice([rng.choice(tokens.value), b"", b"\n", b"<0x0A>", b"<|im_end|>", b"\xff", b"x" * 70000])
            n = rng.choice([1, 2, len(tokens.value)])
            at = rng.randrange(max(1, len(tokens.value) - n + 1))
            tokens.value[at : at + n] = [token] * len(tokens.value[at : at + n])
            return f"{n} tokens {token[:20]!r} from {at}"
    default = Value(STR, b"") if key.endswith(("pre", "template")) else Value(U32, 0)
    parts.pairs[key] = _odd(rng, parts.pairs.get(key) or default)
    return f"{key} = {_short(parts.pairs[key])}"


def _tensor(parts: Parts, rng: random.Random) -> str:
    tensor = rng.choice(parts.tensors)
    how = rng.choice([_weights, _weights, _shape, _kind, _offset, _name, _remove, _twice])
    return f"{tensor.name.decode(errors='replace')} {how(parts, tensor, rng)}"


def _weights(parts: Parts, tensor: Tensor, rng: random.Random) -> str:
    how = rng.randrange(3)
    size = len(tensor.data)
    if how == 0:
        tensor.data = rng.randbytes(size)
        return "random bytes"
    value = rng.choice([math.nan, math.inf, -math.inf, 0.0, 3e38, -3e38])
    if how == 1:
        tensor.data = struct.pack("<f", value) * (size // 4) + b"\0" * (size % 4)
        return f"all {value}"
    at = 4 * rng.randrange(max(1, size // 4))
    tensor.data = tensor.data[:at] + struct.pack("<f", value) + tensor.data[at + 4 :]
    return f"{value} at {at}"


def _shape(parts: Parts, tensor: Tensor, rng: random.Random) -> str:
    at = rng.randrange(len(tensor.dims))
    choices = [0, 1, tensor.dims[at] * 2, tensor.dims[at] // 2, 1 << 31, (1 << 63) - 1, tensor.dims[at] + 1]
    tensor.dims[at] = rng.choice(choices)
    if rng.random() < 0.3:
        tensor.dims += [rng.choice([1, 2])] * rng.choice([1, 3])
    return f"of shape {tensor.dims}"


def _kind(parts: Parts, tensor: Tensor, rng: random.Random) -> str:
    tensor.kind = rng.choice([0, 1, 2, 3, 8, 12, 14, 18, 24, 28, 30, 34, 39, 40, 99, (1 << 32) - 1])
    return f"of type {tensor.kind}"


def _offset(parts: Parts, tensor: Tensor, rng: random.Random) -> str:
    tensor.offset = rng.choice([0, 1, 32, 1 << 20, 1 << 40, (1 << 64) - 32])
    return f"at {tensor.offset}"


def _name(parts: Parts, tensor: Tensor, rng: random.Random) -> str:
    name, tensor.name = tensor.name, rng.choice([*NAMES, rng.choice(parts.tensors).name])
    return f"was {name[:40]!r}"


def _remove(parts: Parts, tensor: Tensor, rng: random.Random) -> str:
    parts.tensors.remove(tensor)
    return "removed"


def _twice(parts: Parts, tensor: Tensor, rng: random.Random) -> str:
    parts.tensors.append(copy.copy(tensor))
    return "twice"


def _short(value: Value) -> str:
    what = f"{len(value.value)} x " if value.kind == ARR else ""
    shown = value.value[:3] if value.kind == ARR else value.value[:40] if value.kind == STR else value.value
    return f"{what}{shown!r} (type {value.kind})"
