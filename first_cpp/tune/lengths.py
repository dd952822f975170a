"""How long the examples are in the model's tokens."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import llama_cpp

from ..gguf.model_file import ModelFile
from ..gguf.quantise import quiet_llama_cpp
from ..runtime.chat_prompt import chat_prompt
from .examples_split import Split


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest prompt, in the model's chat template, and of the longest response."""

    prompt: int
    response: int


def longest(model: ModelFile, parts: Split) -> Lengths:
    """The longest of all parts; the vocabulary alone is loaded.

    >>> longest(ModelFile.open("model.gguf"), Split([{"prompt": "Say one.", "response": "It is."}], [], []))
    Lengths(prompt=14, response=12)
    """
    with quiet_llama_cpp():
        opened = llama_cpp.Llama(model.path, vocab_only=True, verbose=False)
    with contextlib.closing(opened) as vocabulary:
        records = [*parts.train, *parts.valid, *parts.test]
        return Lengths(
            max(len(chat_prompt(vocabulary, one["prompt"])) for one in records),
            max(len(vocabulary.tokenize(one["response"].encode(), add_bos=False)) + 1 for one in records),
        )
