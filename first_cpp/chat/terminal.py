"""Reads messages and shows answers: with editing, colours and history on a terminal, as plain text without one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..errors import OptionError
from ..gguf.printable import without_controls
from .answer_view import AnswerView, Progress
from .comparison import ColumnsView, ComparisonView, OneAfterAnother
from .line_reader import Completions, LineReader, line_reader, typing_kept

FENCE = '"""'
NARROW = 72
"""Columns below which two answers do not stand side by side."""


class Shown(Protocol):
    """A place for one answer."""

    def add(self, part: str) -> None: ...


class Terminal:
    """A person at a terminal, or a pipe. history: keep what is typed in a file."""

    def __init__(self, history: bool = True) -> None:
        from rich.console import Console

        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.console = Console(highlight=False)
        self.renders = self.console.is_terminal and not self.console.is_dumb_terminal
        """Whether Markdown is drawn; elsewhere an answer is its text as it is."""
        self._wraps = self.console.is_terminal
        self._errors = Console(stderr=True, highlight=False)
        self.complete: Completions = lambda _: []
        """What Tab may write."""
        self._reader: LineReader | None = line_reader(history, self._complete) if self.interactive else None

    def _complete(self, line: str) -> list[str]:
        return self.complete(line)

    # -- reading ------------------------------------------------------------------------------------------------------

    def typing_kept(self) -> contextlib.AbstractContextManager[None]:
        """What is typed inside waits for the next line."""
        return typing_kept() if self._reader is not None and self._reader.draws else contextlib.nullcontext()

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
        if self._reader is not None:
            return self._reader.line(prompt)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise OptionError(f"stdin is not text: {error}") from None
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def agrees(self, question: str, otherwise: str) -> bool:
        """Whether the person says yes. Raises OptionError where nobody can be asked, saying what to do otherwise."""
        if self._reader is None:
            raise OptionError(f"{question}: there is nobody to ask; {otherwise}")
        try:
            return self._reader.ask(f"{question}? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    # -- showing ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def answer(self, progress: Progress) -> Iterator[Shown]:
        """A place for the parts of an answer. progress: how far its prompt was read."""
        with AnswerView(self.console, progress) if self.renders else _Raw(self.console.is_terminal) as view:
            yield view

    def comparison(self, titles: list[str], progress: Progress) -> contextlib.AbstractContextManager[ComparisonView]:
        """A place for two answers: side by side, or one after the other where that is too narrow."""
        if self.renders and self.console.width >= NARROW:
            return ColumnsView(self.console, titles, progress)
        return OneAfterAnother(titles, lambda: self.answer(progress), self.quiet, self.width)

    def quiet(self, text: str) -> None:
        """Show a note beside the conversation."""
        self.console.print(without_controls(text), style="dim", markup=False, soft_wrap=not self._wraps)

    def note(self, line: Callable[[int | None], str]) -> None:
        """Show a line about an answer, made for as many columns, where a person sees it: a pipe gets the answer alone."""
        console = next((one for one in (self.console, self._errors) if one.is_terminal), None)
        if console is not None:
            console.print(without_controls(line(console.width)), style="dim", markup=False)

    def show(self, what: Any) -> None:
        """Show a table."""
        self.console.print(what)

    def error(self, text: str) -> None:
        console = self.console if self._wraps else self._errors
        console.print(without_controls(text), style="red", markup=False, soft_wrap=not console.is_terminal)

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None where lines are not wrapped."""
        return self.console.width if self._wraps else None


class _Raw:
    """The text as it is; a terminal gets no control characters."""

    def __init__(self, cleaned: bool) -> None:
        self._cleaned = cleaned

    def add(self, part: str) -> None:
        sys.stdout.write(without_controls(part) if self._cleaned else part)
        sys.stdout.flush()

    def __enter__(self) -> _Raw:
        return self

    def __exit__(self, *exception: object) -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()
