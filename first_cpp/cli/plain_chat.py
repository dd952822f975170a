"""Chats with a model that has no chat template: its text is continued, with one warning.

llama_cpp takes Llama 2's format for every such model, and a model that never saw it ends its answer at once.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import llama_cpp
from llama_cpp.llama_chat_format import ChatFormatterResponse, chat_formatter_to_chat_completion_handler


def has_template(llm: llama_cpp.Llama) -> bool:
    """Whether there is a way to write a chat for this model: a template of its own, or a format that was chosen for it."""
    return llm.chat_handler is not None or llm.chat_format != "llama-2" or "tokenizer.chat_template" in llm.metadata


class PlainChat:
    """A chat handler that joins the messages' texts by newlines; it warns once on stderr."""

    def __init__(self, name: str) -> None:
        self._name = os.path.basename(name)
        self._warned = False
        self._handler = chat_formatter_to_chat_completion_handler(plain_prompt)

    def __call__(self, **request: Any) -> Any:
        if not self._warned:
            self._warned = True
            print(
                f"warning: {self._name} has no chat template; its text is continued as it is (--chat-format chooses a format)",
                file=sys.stderr,
            )
        return self._handler(**request)


def plain_prompt(*, messages: list[dict[str, Any]], **_: Any) -> ChatFormatterResponse:
    """The prompt of a chat without a template.

    >>> plain_prompt(messages=[{"role": "system", "content": "A"}, {"role": "user", "content": "B"}]).prompt
    'A\\nB'
    """
    return ChatFormatterResponse(prompt="\n".join(str(message.get("content") or "") for message in messages))
