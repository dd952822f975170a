"""Shows an answer while it comes: words wrapped, Markdown rendered, and before its first word how far the prompt was read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Heading, Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from ..gguf.printable import without_controls

Progress = Callable[[], "tuple[int, int] | None"]
"""The tokens of the prompt that were read, and all of them; None where no prompt is being read."""

_FRAMES = 12  # a second
_PARSER = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")


class _Heading(Heading):
    """At the left, as everything else is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Markdown(Markdown):
    elements: ClassVar[Any] = {**Markdown.elements, "heading_open": _Heading}


def markdown(text: str) -> Markdown:
    """Markdown as chats mean it: HTML is text, a new line is a new line, and nothing is lost after a fence."""
    made = _Markdown(text, hyperlinks=False)
    made.parsed = _PARSER.parse(text)
    for token in made.parsed:
        for child in token.children or []:
            if child.type == "softbreak":
                child.type = "hardbreak"
        if token.type == "fence" and (not token.content or len(token.info.split()) > 1):
            token.info, token.content = "", f"{token.info}\n{token.content}"  # code, and no language's name
    return made


def finished_lines(text: str) -> int:
    """How many lines of a text that still grows belong to blocks of Markdown that are whole: all before the last block.

    >>> finished_lines("A paragraph.\\n\\n- one\\n- tw")
    2
    """
    starts = [token.map[0] for token in _PARSER.parse(text) if _begins_block(token) and token.map]
    return starts[-1] if len(starts) > 1 else 0


def _begins_block(token: Token) -> bool:
    return token.level == 0 and token.nesting >= 0 and token.map is not None


class Tail:
    """The last lines of what is shown, as many as the terminal has: what is above cannot be drawn again."""

    def __init__(self, shown: Callable[[], RenderableType]) -> None:
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._shown(), options.update(height=None), pad=False)
        for number, line in enumerate(lines[-(console.height - 1) :]):
            if number:
                yield Segment.line()
            yield from line


class Waiting:
    """What to show before the first word: a spinner, and how far the prompt was read."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._progress = progress
        self._spinner = Spinner("line" if console.options.ascii_only else "dots", style="dim")

    def __call__(self) -> RenderableType:
        progress = self._progress()
        words = "" if progress is None else f" reading the prompt: {progress[0]:,} of {progress[1]:,} tokens"
        self._spinner.update(text=Text(words, style="dim"))
        return self._spinner


class Drawing:
    """A place at the end of the terminal where `shown` is drawn again and again, and is gone in the end."""

    def __init__(self, console: Console, shown: Callable[[], RenderableType]) -> None:
        self.lock = threading.RLock()
        """To be held by whoever prints above: rich's own thread would draw amid that, and erase lines that stay."""
        self._live = Live(Tail(shown), console=console, transient=True, auto_refresh=False, vertical_overflow="visible")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="first_cpp drawing", daemon=True)

    def _draw(self) -> None:
        while not self._ended.wait(1 / _FRAMES):
            with self.lock:
                self._live.refresh()

    def __enter__(self) -> Drawing:
        self._live.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._ended.set()
        self._thread.join()
        self._live.__exit__(*exception)


class AnswerView:
    """A context that shows the parts given to `add`; when it ends, the whole answer stands there.

    progress: of the prompt, while there is no part yet.
    """

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._waiting = console, Waiting(console, progress)
        self._text, self._blocks = "", 0
        self._drawing = Drawing(console, self._growing)

    def add(self, part: str) -> None:
        """More of the answer."""
        text = self._text + without_controls(part)
        n_lines = finished_lines(text) if "\n" in part else 0
        lines = text.split("\n")
        with self._drawing.lock:
            self._text = "\n".join(lines[n_lines:])
            if n_lines:
                self._print("\n".join(lines[:n_lines]))

    def _print(self, text: str) -> None:
        """Blocks that are whole, above what still grows."""
        if text.strip():
            self._console.print(self._after_blank(text))
            self._blocks += 1

    def _after_blank(self, text: str) -> RenderableType:
        return Group("", markdown(text)) if self._blocks else markdown(text)

    def _growing(self) -> RenderableType:
        if self._text.strip():
            return self._after_blank(self._text)
        return Text() if self._blocks else self._waiting()

    def __enter__(self) -> AnswerView:
        self._drawing.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._drawing.__exit__(*exception)
        self._print(self._text)
