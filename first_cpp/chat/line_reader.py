"""Reads lines from a person: prompt_toolkit where it is installed, else readline, else plain input."""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

from ..cli.signals import handling
from ..gguf.new_file import check_regular

Completions = Callable[[str], list[str]]
"""The words that may stand in place of the last word of a line."""


class LineReader(Protocol):
    """Both methods raise EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C."""

    draws: bool
    """Whether it draws what is typed by itself, and the terminal need not."""

    def line(self, prompt: str) -> str:
        """A line, or several where the reader has a key for that."""
        ...

    def ask(self, question: str) -> str:
        """An answer that is no part of the history."""
        ...


def history_file() -> str:
    """The file that keeps what was typed."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "first_cpp", "chat_history")


def line_reader(history: bool, completions: Completions) -> LineReader:
    """The best reader there is. history: keep what is typed in a file."""
    try:
        import prompt_toolkit  # noqa: F401
    except ImportError:
        return PlainReader(completions)
    return PromptReader(history, completions)


def paths(beginning: str) -> list[str]:
    """Files and folders whose path begins so; folders end with a slash.

    >>> paths("/et")
    ['/etc/']
    """
    found = sorted(glob.glob(glob.escape(os.path.expanduser(beginning)) + "*"))
    return [path + "/" if os.path.isdir(path) else path for path in found]


class PromptReader:
    """prompt_toolkit: editing, history in a file, Alt-Enter for a new line, Tab."""

    draws = True

    def __init__(self, history: bool, completions: Completions) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory

        self._session: Any = PromptSession(
            history=(_file_history() if history else None) or InMemoryHistory(),
            key_bindings=_keys(completions),
            multiline=True,
            completer=_completer(completions),
            complete_while_typing=False,
        )
        self._question: Any = PromptSession(history=InMemoryHistory())

    def line(self, prompt: str) -> str:
        return _prompted(self._session, prompt)

    def ask(self, question: str) -> str:
        return _prompted(self._question, question)


def _prompted(session: Any, text: str) -> str:
    """What is typed. Ctrl-C while the prompt is being set up waits until it is: amid that asyncio loses or garbles it."""
    early = False

    def remember(_signum: int, _frame: FrameType | None) -> None:
        nonlocal early
        early = True

    def begin() -> None:
        if early:
            session.app.exit(exception=KeyboardInterrupt())

    with handling(signal.SIGINT, remember):
        typed = str(session.prompt(text, pre_run=begin))
    if early:
        raise KeyboardInterrupt
    return typed


def _keys(completions: Completions) -> Any:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("tab")(lambda event: _complete(event.current_buffer, completions))
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    return keys


def _complete(buffer: Any, completions: Completions) -> None:
    """Write what all possible words have in common, at once; where that is there already, show them."""
    if buffer.complete_state:
        buffer.complete_next()
        return
    line = buffer.document.text_before_cursor
    words, last = completions(line), line.rpartition(" ")[2]
    common = os.path.commonprefix(words)  # noqa: RUF071 - of words, by characters
    if common and common != last:
        buffer.delete_before_cursor(len(last))
        buffer.insert_text(common)
    elif len(words) > 1:
        buffer.start_completion()


def _completer(completions: Completions) -> Any:
    from prompt_toolkit.completion import Completer, Completion

    class Words(Completer):  # type: ignore[misc]
        def get_completions(self, document: Any, _: Any) -> Iterator[Any]:
            line = document.text_before_cursor
            last = line.rpartition(" ")[2]
            for word in completions(line):
                yield Completion(word, start_position=-len(last))

    return Words()


def _file_history() -> Any:
    """A history that only its owner can read; None where there is no place for it."""
    from prompt_toolkit.history import FileHistory

    path = history_file()
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        check_regular(path)
        with open(path, "a", encoding="utf-8"):
            pass
        os.chmod(path, 0o600)  # other users must not read what was typed
    except OSError:
        return None  # a home that cannot be written: history lasts for this session
    return FileHistory(path)


class PlainReader:
    """Python's input(), with readline's editing, Tab and history of this session where Python has readline."""

    def __init__(self, completions: Completions) -> None:
        self.draws = False
        with contextlib.suppress(ImportError):
            import readline

            readline.set_completer_delims(" ")
            readline.set_completer(lambda _, number: _at(completions(_typed(readline)), number))
            readline.parse_and_bind("tab: complete")
            self.draws = True

    def line(self, prompt: str) -> str:
        with typing_shown():
            return input(prompt)

    ask = line


def _typed(readline: Any) -> str:
    """The line as far as the cursor."""
    return str(readline.get_line_buffer()[: readline.get_endidx()])


def _at(words: list[str], number: int) -> str | None:
    return words[number] if number < len(words) else None


def typing_kept() -> contextlib.AbstractContextManager[None]:
    """What is typed inside is not shown, and waits for the next reader, which draws it; also after Ctrl-C.

    A person who types during an answer neither sees it amid the answer nor loses it.
    """
    return _terminal_mode(draws=False)


def typing_shown() -> contextlib.AbstractContextManager[None]:
    """The terminal as usual, also inside `typing_kept`: readline draws nothing where a terminal does not."""
    return _terminal_mode(draws=True)


@contextlib.contextmanager
def _terminal_mode(draws: bool) -> Iterator[None]:
    try:
        import termios
    except ImportError:  # Windows, which shows nothing
        yield
        return
    try:
        before = termios.tcgetattr(sys.stdin)
    except (OSError, ValueError, termios.error):  # no terminal
        yield
        return
    asked = list(before)
    if draws:
        asked[0] |= termios.ICRNL
        asked[3] |= termios.ECHO | termios.ICANON
    else:
        asked[0] &= ~termios.ICRNL  # Enter stays Enter
        asked[3] = (asked[3] | termios.NOFLSH) & ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, asked)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
