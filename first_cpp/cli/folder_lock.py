"""One command at a time writes to an output folder: two would mix their files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ..gguf.new_file import OutputError


@contextlib.contextmanager
def locked_folder(path: str) -> Iterator[None]:
    """Make a folder and hold it, until the block or the process ends, however it ends. Nothing is written for it.

    Raises OutputError where another command holds it. On Windows, and on a file system without locks, nothing is held.

    >>> with locked_folder("run"), locked_folder("run"):
    ...     pass
    Traceback (most recent call last):
    first_cpp.gguf.new_file.OutputError: another command is writing to run: wait for it to end, or choose another folder
    """
    os.makedirs(path, exist_ok=True)
    held = _lock(path)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def check_unlocked(path: str) -> None:
    """Raise OutputError where another command holds a folder, which need not be there.

    >>> check_unlocked("nowhere")
    """
    if (held := _lock(path)) is not None:
        os.close(held)


def _lock(path: str) -> int | None:
    try:
        import fcntl
    except ImportError:
        return None
    try:
        held = os.open(path, os.O_RDONLY)
    except OSError:  # not there; what else is wrong shows as it is written to
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise OutputError(f"another command is writing to {path}: wait for it to end, or choose another folder") from None
    except OSError:
        os.close(held)
        return None
    return held
