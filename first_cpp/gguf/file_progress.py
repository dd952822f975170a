"""One bar over all that is read and written to make a file, with the time that remains."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

Advance = Callable[[str, float], object]
"""Called with what is being done, and so much more of it."""

LOOKS = 0.2
"""Seconds between two looks at a file that grows."""


@contextlib.contextmanager
def file_progress(total: float, quiet: bool) -> Iterator[Advance]:
    """A bar on standard error that ends at `total`, gone when the block ends; none where `quiet` or where it is no terminal.

    >>> with file_progress(10, quiet=True) as advance:
    ...     advance("copying", 10)
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        task = bars.add_task("", total=total)
        yield lambda what, more: bars.update(task, description=what, advance=more)


@contextlib.contextmanager
def growing(path: str, expected: float, more: Callable[[float], object]) -> Iterator[None]:
    """While another library writes `path`, tell `more` by which part of `expected` bytes it has grown; 1 in all in the end.

    >>> parts = []
    >>> with growing("grows.bin", 4, parts.append), open("grows.bin", "wb") as file:
    ...     _ = file.write(b"1234")
    >>> sum(parts)
    1.0
    """
    ended, told = threading.Event(), 0.0

    def look() -> None:
        nonlocal told
        while not ended.wait(LOOKS):
            with contextlib.suppress(OSError):
                part = min(1.0, os.path.getsize(path) / expected)
                more(part - told)
                told = part

    thread = threading.Thread(target=look, name="first_cpp growing file", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    more(1.0 - told)
