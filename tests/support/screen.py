"""A program at a terminal of so many columns, and what a person would see there."""

from __future__ import annotations

import os
import re
import time

import pexpect
import pyte


class _Emulator(pyte.HistoryScreen):
    """A terminal that answers the program's questions, as where the cursor is."""

    reply = None

    def write_process_input(self, data: str) -> None:
        if self.reply is not None:
            self.reply(data)


class Screen:
    """Runs `words` in a pseudo terminal. `width` and `height` in characters.

    Nothing it draws is kept back: `raw` is every byte, `text` what stands on the screen and above it.
    """

    def __init__(
        self, words: list[str], width: int = 80, height: int = 24, encoding: str = "utf-8", **environment: str
    ) -> None:
        names = {**os.environ, "TERM": "xterm-256color", **environment}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "XDG_STATE_HOME", "PROMPT_TOOLKIT_NO_CPR"):
            if name not in environment:
                names.pop(name, None)
        self.emulator = _Emulator(width, height, history=5000, ratio=0.001)
        self._stream = pyte.Stream(self.emulator)
        self.raw = ""
        self.process = pexpect.spawn(
            words[0], words[1:], env=names, encoding=encoding, codec_errors="replace", dimensions=(height, width), timeout=60
        )
        self.process.delaybeforesend = None
        self.emulator.reply = self.process.send

    def read(self, seconds: float = 0.05) -> bool:
        """Take what is drawn within so many seconds; False once the program has ended."""
        try:
            part = self.process.read_nonblocking(65536, seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += part
        self._stream.feed(part)
        return True

    def wait(self, pattern: str, seconds: float = 20, after: int = 0) -> None:
        """Until the screen shows `pattern`, a regular expression, at least `after` + 1 times. Raises AssertionError."""
        end = time.monotonic() + seconds
        while len(re.findall(pattern, self.text)) <= after:
            alive = self.read()
            found = len(re.findall(pattern, self.text)) > after
            assert found or (alive and time.monotonic() < end), f"no {pattern!r} on the screen:\n{self.text}"

    def settle(self, seconds: float = 0.4) -> None:
        """Until nothing has been drawn for so long."""
        quiet = time.monotonic()
        while time.monotonic() - quiet < seconds:
            before = len(self.raw)
            if not self.read():
                return
            if len(self.raw) != before:
                quiet = time.monotonic()

    def end(self, seconds: float = 20) -> int:
        """The exit status of a program that ends by itself."""
        end = time.monotonic() + seconds
        while self.read():
            assert time.monotonic() < end, f"it has not ended:\n{self.text}"
        self.process.wait()
        return self.process.exitstatus

    def send(self, text: str) -> None:
        self.process.send(text)

    @property
    def lines(self) -> list[str]:
        """Everything shown so far, also what has scrolled away; no blanks at the end of lines."""
        width = self.emulator.columns
        above = ["".join(line[column].data for column in range(width)) for line in self.emulator.history.top]
        lines = [line.rstrip() for line in [*above, *self.emulator.display]]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def close(self) -> None:
        self.process.close(force=True)

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
