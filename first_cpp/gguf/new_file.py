"""Writing a file beside its final name and renaming it: nobody ever sees half of it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import FirstCppError


class OutputError(FirstCppError, OSError):
    """An output that must not or cannot be written."""


def check_output(out: str, inputs: list[str], force: bool, n_bytes: int) -> None:
    """Raise OutputError before any work if `out` cannot become a file of `n_bytes`."""
    folder = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(folder):
        raise OutputError(f"--out {out}: the folder {folder} does not exist")
    if os.path.isdir(out):
        raise OutputError(f"--out {out} is a folder")
    for path in inputs:
        if os.path.exists(out) and os.path.exists(path) and os.path.samefile(out, path):
            raise OutputError(f"--out {out} is the input {path}; choose another name")
    if os.path.exists(out) and not force:
        raise OutputError(f"--out {out} exists; use --force to overwrite it")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"--out {out}: the folder {folder} is not writable")
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OutputError(f"--out {out} needs {n_bytes} bytes, {folder} has {free} free")


@contextlib.contextmanager
def new_file(out: str) -> Iterator[BinaryIO]:
    """A file that gets the name `out` when all of it is on disk; on any error or interrupt it is removed."""
    part = f"{out}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)
