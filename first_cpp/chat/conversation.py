"""The messages of a chat so far, and the file that keeps them."""

from __future__ import annotations

import json
from typing import Any

from ..errors import OptionError
from ..gguf.new_file import new_file

ROLES = ("system", "user", "assistant")


class Conversation:
    """The messages of a chat, as create_chat_completion takes them.

    >>> conversation = Conversation("Be brief.")
    >>> conversation.ask("Hello")
    >>> conversation.answer("Hi.")
    >>> [message["role"] for message in conversation.messages]
    ['system', 'user', 'assistant']
    """

    def __init__(self, system: str | None = None) -> None:
        self.messages: list[dict[str, str]] = []
        if system:
            self.system = system

    @property
    def system(self) -> str | None:
        """The system message, None without."""
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages[1:] if self.system is not None else self.messages
        self.messages = [{"role": "system", "content": text}, *rest] if text else rest

    def ask(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """Remove a question that got no answer."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def last_question(self) -> list[dict[str, str]]:
        """The messages up to the last question; empty before the first."""
        for end in range(len(self.messages), 0, -1):
            if self.messages[end - 1]["role"] == "user":
                return self.messages[:end]
        return []

    def clear(self) -> None:
        """Remove all messages but the system message."""
        system = self.system
        self.messages = []
        self.system = system

    def save(self, path: str) -> None:
        """Write the messages as JSON; an older file is replaced only when the new one is whole. Raises OSError."""
        text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1)
        with new_file(path) as file:
            file.write(text.encode("utf-8"))

    def load(self, path: str) -> None:
        """Read messages that `save` wrote. Raises OSError, and OptionError for a file of another kind."""
        with open(path, encoding="utf-8") as file:
            try:
                self.messages = _checked(json.load(file))
            except (ValueError, KeyError, TypeError) as error:
                raise OptionError(f"{path} is not a saved conversation: {error}") from None


def _checked(saved: Any) -> list[dict[str, str]]:
    messages = [{"role": one["role"], "content": one["content"]} for one in saved["messages"]]
    for number, one in enumerate(messages):
        if one["role"] not in ROLES or not isinstance(one["content"], str):
            raise ValueError(f"message {number} has role {one['role']!r} and content of type {type(one['content']).__name__}")
    return messages
