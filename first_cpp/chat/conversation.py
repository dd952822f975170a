"""What was said so far, and the file that keeps it."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

from ..errors import OptionError

ROLES = ("system", "user", "assistant")


class Conversation:
    """The messages of a chat, as create_chat_completion takes them."""

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
        """Forget a question that got no answer."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def last_question(self) -> list[dict[str, str]]:
        """The messages up to the last question; empty before the first."""
        for end in range(len(self.messages), 0, -1):
            if self.messages[end - 1]["role"] == "user":
                return self.messages[:end]
        return []

    def clear(self) -> None:
        """Forget all but the system message."""
        system = self.system
        self.messages = []
        self.system = system

    def save(self, path: str) -> None:
        """Write the messages as JSON; an older file is replaced only when the new one is whole. Raises OSError."""
        folder = os.path.dirname(os.path.abspath(path))
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, suffix=".part", delete=False) as file:
            try:
                json.dump({"messages": self.messages}, file, ensure_ascii=False, indent=1)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                file.close()
                os.unlink(file.name)
                raise

    def load(self, path: str) -> None:
        """Read messages that `save` wrote. Raises OSError, and OptionError for a file of another kind."""
        with open(path, encoding="utf-8") as file:
            try:
                self.messages = _checked(json.load(file))
            except (ValueError, KeyError, TypeError) as error:
                raise OptionError(f"{path} is no saved conversation: {error}") from None


def _checked(saved: Any) -> list[dict[str, str]]:
    messages = [{"role": one["role"], "content": one["content"]} for one in saved["messages"]]
    for number, one in enumerate(messages):
        if one["role"] not in ROLES or not isinstance(one["content"], str):
            raise ValueError(f"message {number} has role {one['role']!r} and content of type {type(one['content']).__name__}")
    return messages
