"""A command line carried out in this process, its standard streams those of a pipe: Python starts and imports only once."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from first_cpp.cli.main import main


def command(
    *words: str, text: str = "", encoding: str = "utf-8", entry: Callable[[Sequence[str]], int] = main
) -> subprocess.CompletedProcess[str]:
    """Its exit code, what it printed, and what it and llama.cpp wrote to stderr; `text` is what stdin holds."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(text.encode(encoding))
        given.seek(0)
        with _streams(given, out, err, encoding):
            try:
                code = entry(words)
            except SystemExit as end:  # argparse
                code = end.code
        for file in (out, err):
            file.seek(0)
        said, errors = (_text(file.read().decode(encoding)) for file in (out, err))
        return subprocess.CompletedProcess(words, code, said, errors)


def _text(read: str) -> str:
    """With the ends of lines that subprocess makes of them."""
    return read.replace("\r\n", "\n").replace("\r", "\n")


@contextlib.contextmanager
def _streams(given: IO[bytes], out: IO[bytes], err: IO[bytes], encoding: str) -> Iterator[None]:
    """File descriptors 0, 1 and 2, and Python's streams over them."""
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in range(3)]
    for number, file in enumerate((given, out, err)):
        os.dup2(file.fileno(), number)
    try:
        with (
            open(0, encoding=encoding, closefd=False) as sys.stdin,
            open(1, "w", encoding=encoding, closefd=False) as sys.stdout,
            open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False) as sys.stderr,
        ):
            yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        for number, descriptor in enumerate(kept):
            os.dup2(descriptor, number)
            os.close(descriptor)
