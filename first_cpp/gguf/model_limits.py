"""What a model's file may say of itself. What llama.cpp would end the process over is refused when the file is opened.

llama.cpp checks tensor shapes against hyper-parameters and raises; on the values below it asserts, while it loads the model,
builds its first graph or reads its first text. tests/fuzz/fuzz_open.py looks for more of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any

from .._ext import GgufFile, GgufTensor
from ..errors import ModelFileError, SettingError
from .printable import printable

MOST_BLOCKS = 512
"""LLAMA_MAX_LAYERS of src/llama-hparams.h."""
MOST_EXPERTS = 1024
"""LLAMA_MAX_EXPERTS."""
MOST_CONTEXT = 1 << 26
"""Tokens; llama_cpp makes a list of so many for each text that it reads. The longest in use is 10 million."""
_REMEDY = "the file is damaged, or its converter was wrong: convert or download it again"
# Name without the architecture: least, most.
_COUNTS = {
    "block_count": (1, MOST_BLOCKS),
    "context_length": (1, MOST_CONTEXT),
    "embedding_length": (1, 1 << 20),
    "vocab_size": (1, 1 << 24),
    "nextn_predict_layers": (0, MOST_BLOCKS),
    "expert_count": (0, MOST_EXPERTS),
    "expert_used_count": (0, MOST_EXPERTS),
    "expert_group_count": (0, MOST_EXPERTS),
    "expert_group_used_count": (0, MOST_EXPERTS),
    "expert_gating_func": (0, 4),
    "attention.head_count": (0, (1 << 16) - 1),
    "attention.head_count_kv": (0, (1 << 16) - 1),
    "attention.key_length": (1, 1 << 16),
    "attention.value_length": (1, 1 << 16),
    "attention.sliding_window": (0, MOST_CONTEXT),
    "rope.dimension_count": (0, 1 << 16),
}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# As asserted by the graph of each, found by giving tiny models of them other numbers. Their heads are rotated whole:
_ROTATED_WHOLE = _names(
    "arctic baichuan chameleon codeshell cohere2moe dbrx deepseek dots1 ernie4_5 ernie4_5-moe graniteswitch grok grovemoe "
    "hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais2 olmo olmo2 olmoe orion plamo qwen2 qwen2moe qwen2vl qwen3 "
    "qwen3moe qwen3vl qwen3vlmoe seed_oss smallthinker smollm3 starcoder2 xverse"
)
# Here a part may be rotated, but not nothing: llama.cpp would never return.
_ROTATED = _names(
    "afmoe bailingmoe2 bitnet chatglm cohere2 command-r deepseek4 gemma gemma2 gemma3 gemma3n gemma4 glm4 glm4moe gptneox "
    "hrm_text laguna lfm2 lfm2moe maple minimax-01 minimax-m2 muse-glimmer nemotron openelm phi2 phimoe plamo2 plamo3 qwen "
    "qwen35 qwen35moe qwen3next qwen4exp stablelm"
)
# Keys and values have heads of one length:
_EQUAL_HEADS = _names(
    "arctic baichuan bitnet bloom codeshell cohere2 command-r dbrx deepseek deepseek2-ocr deepseek4 exaone-moe falcon gpt2 "
    "gpt-oss gptneox grok internlm2 jais maple mpt nemotron olmo olmo2 olmoe orion phi2 phimoe plamo qwen qwen2 qwen2moe "
    "qwen2vl starcoder starcoder2 xverse"
)
_WITHOUT_HEADS = ("rwkv", "arwkv", "mamba")
_ROPE_SCALING = ("none", "linear", "yarn", "longrope")
_NUMBERS = ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")


class Hyperparameters:
    """The numbers that a file gives for its architecture.

    >>> from first_cpp.gguf.model_file import open_gguf
    >>> Hyperparameters(open_gguf("model.gguf"), "llama", "model.gguf").check()
    """

    def __init__(self, file: GgufFile, architecture: str, path: str) -> None:
        self._file = file
        self._architecture = architecture
        self._path = path

    def check(self) -> None:
        """Raise ModelFileError naming the key, its value and what is allowed."""
        for name, (least, most) in _COUNTS.items():
            for value in self._values(name):
                if not least <= value <= most:
                    raise self._error(name, value, f"{least} to {most}")
        blocks, further = self._most("block_count"), self._most("nextn_predict_layers")
        if blocks and further >= blocks:
            raise self._error("nextn_predict_layers", further, f"less than block_count, which is {blocks}")
        self._check_epsilons()
        self._check_experts()
        self._check_attention()
        self._check_rope()

    def _values(self, name: str) -> list[int]:
        """A whole number, or those of an array; none where there is no such key, or it holds something else."""
        key = f"{self._architecture}.{name}"
        kind = self._file.kind(key)
        if kind in _NUMBERS:
            return [int(self._file.get(key))]
        found = re.fullmatch(r"arr\[(\w+)\]", kind)
        return [int(one) for one in self._file.get(key)] if found and found[1] in (*_NUMBERS, "bool") else []

    def _most(self, name: str) -> int:
        return max(self._values(name), default=0)

    def _error(self, name: str, value: object, allowed: str) -> ModelFileError:
        return ModelFileError(f"{self._path}: {printable(self._architecture)}.{name} is {value}, expected {allowed}; {_REMEDY}")

    def _check_epsilons(self) -> None:
        """llama.cpp asserts that the epsilon of a norm is at least 0."""
        for key in self._file.keys():
            if key.startswith(f"{self._architecture}.") and key.endswith("epsilon") and self._file.kind(key) == "f32":
                value = float(self._file.get(key))
                if not (math.isfinite(value) and 0 <= value <= 1):
                    raise ModelFileError(f"{self._path}: {printable(key)} is {value}, expected a number from 0 to 1; {_REMEDY}")

    def _check_experts(self) -> None:
        count, used, groups = (self._most(name) for name in ("expert_count", "expert_used_count", "expert_group_count"))
        if used > count or (used == 0) != (count == 0):
            allowed = f"1 to {count}" if count else "0, as expert_count is"
            raise self._error("expert_used_count", used, allowed)
        if groups and groups >= max(count, 1):
            raise self._error("expert_group_count", groups, f"less than expert_count, which is {count}")
        if groups > 1 and count % groups:
            raise self._error("expert_group_count", groups, f"a divisor of expert_count, which is {count}")
        if groups > 1 and not 0 < self._most("expert_group_used_count") < groups:
            raise self._error("expert_group_used_count", self._most("expert_group_used_count"), f"1 to {groups - 1}")

    def _check_attention(self) -> None:
        windows, pattern = self._most("attention.sliding_window"), self._values("attention.sliding_window_pattern")
        if windows and pattern and (pattern == [1] if len(pattern) == 1 else not any(pattern)):
            raise self._error("attention.sliding_window_pattern", pattern[0], "a pattern in which some layer has a window")
        self._check_heads()
        if head := self._most("attention.key_length_mla"):
            self._check_latent(head)

    def _check_heads(self) -> None:
        architecture, heads = self._architecture, self._values("attention.head_count")
        if heads == [0] and not architecture.startswith(_WITHOUT_HEADS):
            raise self._error("attention.head_count", 0, "1 or more")
        width = self._width()
        key = self._most("attention.key_length") or width
        value = self._most("attention.value_length") or width
        if architecture in _EQUAL_HEADS and key != value:
            raise self._error("attention.key_length", key, f"{value}, as attention.value_length is")
        for rotated in self._values("rope.dimension_count"):
            if architecture in _ROTATED_WHOLE and rotated != key:
                raise self._error("rope.dimension_count", rotated, f"{key}, as attention.key_length is")
            if architecture in _ROTATED and (rotated % 2 or not 0 < rotated <= key):
                raise self._error("rope.dimension_count", rotated, f"an even number from 2 to {key}")

    def head_sizes(self) -> tuple[int, int]:
        """Numbers that a key, and that a value, has in a head."""
        width = self._width()
        return self._most("attention.key_length") or width, self._most("attention.value_length") or width

    def _check_latent(self, head: int) -> None:
        """Heads of `head` values that share a latent of a lower rank (multi-head latent attention)."""
        rank, rotated = self._most("attention.kv_lora_rank"), self._most("rope.dimension_count")
        if rotated >= head:
            raise self._error("rope.dimension_count", rotated, f"less than attention.key_length_mla, which is {head}")
        if self._most("attention.head_count_kv") > 1:
            raise self._error("attention.head_count_kv", self._most("attention.head_count_kv"), "1: all heads share the latent")
        width = self._width()  # what llama.cpp takes where there is no such key
        for name, expected in (("key_length", rank + rotated), ("value_length", rank)):
            found = self._values(f"attention.{name}")
            if (found or [width]) != [expected]:
                raise self._error(f"attention.{name}", max(found, default="missing"), f"{expected}: the latent's")

    def _width(self) -> int:
        """Values of a head where no key says it."""
        heads = self._values("attention.head_count") or [1]
        return self._most("embedding_length") // max(1, heads[0] or max(heads))

    def _check_rope(self) -> None:
        key = f"{self._architecture}.rope.scaling.type"
        if self._file.kind(key) == "str":
            value = self._file.get(key).decode(errors="replace")
            if value not in _ROPE_SCALING:
                raise self._error("rope.scaling.type", f"'{printable(value, 40)}'", f"one of {', '.join(_ROPE_SCALING)}")


# -- the vocabulary -------------------------------------------------------------------------------------------------


def check_vocabulary(file: GgufFile, path: str) -> Spelling | None:
    """What a vocabulary can spell, None where that is every text. Raises ModelFileError for one that is missing or has a token
    twice."""
    tokens = _array(file, path, "tokenizer.ggml.tokens", "arr[str]")
    if file.kind("tokenizer.ggml.model") != "str" or tokens is None:
        missing = "tokenizer.ggml.model" if file.kind("tokenizer.ggml.model") != "str" else "tokenizer.ggml.tokens"
        raise ModelFileError(
            f"{path}: {missing} is {file.kind(missing) or 'missing'}: without a vocabulary no text can be read"
        )
    model = file.get("tokenizer.ggml.model")
    if model in (b"no_vocab", b"none"):
        raise ModelFileError(f"{path}: tokenizer.ggml.model is {model.decode()!r}: without a vocabulary no text can be read")
    known = set(tokens)
    if len(known) < len(tokens) and len(known) < len(tokens) - max(0, tokens.count(b"") - 1):  # llama.cpp names empty ones
        raise ModelFileError(f"{path}: tokenizer.ggml.tokens has the same token twice: {_twice(tokens)}")
    types = _array(file, path, "tokenizer.ggml.token_type", "arr[i32]")
    if model == b"bert" and types is not None and (types == 6).any():
        raise ModelFileError(
            f"{path}: tokenizer.ggml.token_type has byte tokens, which a tokenizer of the kind 'bert' cannot have"
        )
    spelling = Spelling(known) if model == b"llama" else None
    return spelling if spelling is not None and spelling.missing else None


_SPACE = "\u2581"


class Spelling:
    """What a SentencePiece vocabulary without a token for every byte can spell: for other texts llama.cpp ends the process.

    >>> Spelling({b"H", b"i"}).check(b"Hi")
    >>> Spelling({b"H", b"i"}).check(b"Ho")
    Traceback (most recent call last):
    first_cpp.errors.SettingError: the vocabulary of this model cannot spell 'o': it has neither the character nor its bytes
    """

    def __init__(self, tokens: Collection[bytes]) -> None:
        self._characters = {found for token in tokens if len(found := token.decode(errors="replace")) == 1}
        self.missing = {byte for byte in range(256) if b"<0x%02X>" % byte not in tokens and bytes([byte]) not in tokens}
        """Bytes that have no token."""

    def check(self, text: bytes) -> None:
        """Raise SettingError for a text that cannot be spelled."""
        # bytes that are not UTF-8 become surrogates, which no vocabulary has
        for character in sorted(set(text.decode(errors="surrogateescape").replace(" ", _SPACE)) - self._characters):
            if not self.missing.isdisjoint(character.encode(errors="surrogateescape")):
                shown = printable(character.replace(_SPACE, " "))
                raise SettingError(
                    f"the vocabulary of this model cannot spell '{shown}': it has neither the character nor its bytes"
                )


def _array(file: GgufFile, path: str, key: str, kind: str) -> Any:
    """The values of an array, None where there is none. Raises ModelFileError for another kind of value."""
    found = file.kind(key)
    if not found:
        return None
    if found != kind:
        raise ModelFileError(f"{path}: {key} is {found}, expected {kind}")
    return file.get(key)


def _twice(tokens: list[bytes]) -> str:
    seen: dict[bytes, int] = {}
    for number, token in enumerate(tokens):
        if token and seen.setdefault(token, number) != number:
            text = printable(token.decode(errors="replace"), 40)
            return f"'{text}' is number {seen[token]} and number {number}"
    return "no"


# -- tensors --------------------------------------------------------------------------------------------------------

_NO_WEIGHTS = ("i8", "i16", "i64", "f64")


def check_tensor(tensor: GgufTensor, path: str) -> None:
    """Raise ModelFileError for a tensor of a type that no operation of a graph takes."""
    if tensor.type in _NO_WEIGHTS:
        raise ModelFileError(f"{path}: tensor {printable(tensor.name)} is {tensor.type}, which llama.cpp cannot compute with")
    if len(tensor.shape) == 1 and tensor.type != "f32" and tensor.name.endswith((".bias", "norm.weight")):
        raise ModelFileError(f"{path}: tensor {printable(tensor.name)} is {tensor.type}, expected f32")
