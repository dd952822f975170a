"""Two answers to one prompt, as they come: in two columns, or one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ..cli.answer_record import AnswerRecord
from ..gguf.printable import without_controls
from .answer_view import Drawing, Progress, Waiting, markdown


class ComparisonView(Protocol):
    """A place for some answers, one after the other: `add` parts of one, then `end` it."""

    def add(self, part: str) -> None: ...

    def end(self, record: AnswerRecord | None) -> None: ...


class ColumnsView:
    """A table with a column for each answer; when the context ends it stands there whole."""

    def __init__(self, console: Console, titles: list[str], progress: Progress) -> None:
        self._console, self._titles, self._waiting = console, titles, Waiting(console, progress)
        self._texts = [""]
        self._figures: list[str] = []
        self._drawing = Drawing(console, lambda: self._table(growing=True))

    def add(self, part: str) -> None:
        self._texts[-1] += without_controls(part)

    def end(self, record: AnswerRecord | None) -> None:
        self._figures.append(record.line().replace(" · ", "\n") if record else "")
        self._texts.append("")

    def _table(self, growing: bool) -> Table:
        table = Table(expand=True)
        for title in self._titles:
            table.add_column(title, ratio=1)
        table.add_row(*(self._cell(number, growing) for number in range(len(self._titles))))
        if self._figures:
            table.add_section()
            table.add_row(*(Text(figures, style="dim") for figures in self._figures))
        return table

    def _cell(self, number: int, growing: bool) -> RenderableType:
        if number < len(self._texts) and self._texts[number].strip():
            return markdown(self._texts[number])
        return self._waiting() if growing and number == len(self._texts) - 1 else Text()

    def __enter__(self) -> ColumnsView:
        self._drawing.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._drawing.__exit__(*exception)
        self._console.print(self._table(growing=False))


class OneAfterAnother:
    """Each answer under its title. place: makes the place for one answer. note: shows a line of at most `width` columns."""

    def __init__(
        self,
        titles: list[str],
        place: Callable[[], contextlib.AbstractContextManager[Any]],
        note: Callable[[str], None],
        width: int | None,
    ) -> None:
        self._titles, self._place, self._note, self._width = list(titles), place, note, width
        self._stack = contextlib.ExitStack()
        self._view: Any = None

    def _begin(self) -> None:
        self._note(f"{self._titles.pop(0)}:")
        self._view = self._stack.enter_context(self._place())

    def add(self, part: str) -> None:
        self._view.add(part)

    def end(self, record: AnswerRecord | None) -> None:
        self._stack.close()
        if record is not None:
            self._note(record.line(self._width))
        if self._titles:
            self._begin()

    def __enter__(self) -> OneAfterAnother:
        self._begin()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
