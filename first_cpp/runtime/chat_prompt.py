"""The prompt of a chat, as the model's own template writes it."""

from __future__ import annotations

import functools
from typing import Any

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter


def chat_prompt(llm: llama_cpp.Llama, text: str) -> list[int]:
    """The tokens of a user's turn in the model's own chat template; of the plain text for a model without one.

    >>> import llama_cpp
    >>> llm = llama_cpp.Llama("model.gguf", n_ctx=256, verbose=False)
    >>> chat_prompt(llm, "Hi") == llm.tokenize(b"Hi")  # this model has no template
    True
    >>> llm.close()
    """
    if "tokenizer.chat_template" not in llm.metadata:
        return llm.tokenize(text.encode("utf-8"))  # type: ignore[no-any-return]
    return llm.tokenize(_rendered(llm, text).encode("utf-8"), add_bos=False, special=True)  # type: ignore[no-any-return]


def user_turn(llm: llama_cpp.Llama) -> list[int]:
    """The tokens of the model's chat template up to where the user speaks: what it says next is a user's turn.

    Raises ValueError for a model without a template.
    """
    before = _rendered(llm, _MARK).partition(_MARK)[0]
    return llm.tokenize(before.encode("utf-8"), add_bos=False, special=True)  # type: ignore[no-any-return]


_MARK = "what the user says"


def chat_text(llm: llama_cpp.Llama, messages: list[dict[str, str]], answered: bool = True) -> str:
    """The messages as the model's own chat template writes them. Raises ValueError for a model without one.

    answered: up to where the answer begins, else to the end of the last message.
    """
    template = llm.metadata.get("tokenizer.chat_template")
    if template is None:
        raise ValueError("the model has no chat template")
    formatter = _formatter(template, _token_text(llm, llm.token_eos()), _token_text(llm, llm.token_bos()), answered)
    return str(formatter(messages=messages).prompt)


def _rendered(llm: llama_cpp.Llama, text: str) -> str:
    """A user's turn in the model's template."""
    return chat_text(llm, [{"role": "user", "content": text}])


@functools.lru_cache(maxsize=4)
def _formatter(template: str, eos: str, bos: str, answered: bool) -> Any:
    """A template is compiled once."""
    return Jinja2ChatFormatter(template=template, eos_token=eos, bos_token=bos, add_generation_prompt=answered)


def _token_text(llm: llama_cpp.Llama, token: int) -> str:
    """The text of a special token; empty for a model that has none (-1)."""
    if token < 0:
        return ""
    text: bytes = llama_cpp.llama_vocab_get_text(llama_cpp.llama_model_get_vocab(llm.model), token)
    return text.decode("utf-8")
