"""Reads messages and shows answers: with editing, colours and history on a terminal, as plain text without one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from ..gguf.new_file import check_regular
from ..gguf.printable import printable

FENCE = '"""'


def history_file() -> str:
    """The file that keeps what was typed."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "first_cpp", "chat_history")


class Terminal:
    """A person at a terminal, or a pipe."""

    def __init__(self, history: bool = True) -> None:
        from rich.console import Console

        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.console = Console(highlight=False, soft_wrap=True)
        self._session = _prompt_session(history) if self.interactive else None

    def read(self) -> str:
        """One message. Text between lines of \"\"\" may have many lines. Raises EOFError at the end of input."""
        first = self._line("> ")
        if not first.startswith(FENCE):
            return first
        lines = [first[len(FENCE) :]]
        while not lines[-1].endswith(FENCE):
            lines.append(self._line(". "))
        lines[-1] = lines[-1][: -len(FENCE)]
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str:
        if self._session is not None:
            return str(self._session.prompt(prompt))
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def stream(self, parts: Iterator[str]) -> Iterator[str]:
        """Show parts of a text as they come, and yield them again."""
        for part in parts:
            sys.stdout.write(part)
            sys.stdout.flush()
            yield part

    def end_line(self) -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()

    def quiet(self, text: str) -> None:
        """Show a note beside the conversation."""
        self.console.print(text, style="dim", markup=False)

    def show(self, what: Any) -> None:
        """Show a table or a text."""
        self.console.print(what)

    def error(self, text: str) -> None:
        self.console.print(printable(text), style="red", markup=False)


def _prompt_session(history: bool) -> Any:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())

    kept: Any = InMemoryHistory()
    if history:
        path = history_file()
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            check_regular(path)
            with open(path, "a", encoding="utf-8"):
                pass
            os.chmod(path, 0o600)  # other users must not read what was typed
            kept = FileHistory(path)
        except OSError:
            pass  # a home that cannot be written: history lasts for this session
    return PromptSession(history=kept, key_bindings=keys, multiline=True)
