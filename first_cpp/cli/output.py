"""Standard streams as they are found: closed, of any encoding, or full."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from typing import TextIO

_REPLACEMENTS = {
    **{"\u00b7": "-", "\u2588": "#", "\u2026": "...", "\u2013": "-", "\u2014": "-", "\u2018": "'", "\u2019": "'"},
    **{"\u2022": "*", "\u258c": "|", "\u2500": "-", "\u2501": "-", "\u2502": "|"},  # of Markdown
}


def _replace(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: what an encoding has no sign for is printed as something near, or as a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_REPLACEMENTS.get(sign, "?") for sign in signs), error.end


codecs.register_error("first_cpp", _replace)


def prepare_streams() -> None:
    """Make stdin, stdout and stderr usable whatever they are; a closed one reads or writes nothing.

    Raises OSError where stdout is closed: what a command prints would be lost.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - open as long as the process is
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - likewise
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - likewise
        raise OSError("stdout is closed, so that nothing can be printed; redirect it to a file or /dev/null")
    _read_text_alone(sys.stdin)
    for stream in (sys.stdout, sys.stderr):
        _print_anything(stream)


def _read_text_alone(stream: TextIO) -> None:
    """Refuse bytes that are no text, which Python passes on as half surrogates where no locale is set, and no model reads."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None and stream.errors == "surrogateescape":
        ascii_alone = codecs.lookup(stream.encoding).name == "ascii"
        reconfigure(encoding="utf-8" if ascii_alone else stream.encoding, errors="strict")


def _print_anything(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)  # of a real stream, not of one that stands in for it
    if reconfigure is not None and stream.errors in ("strict", "surrogateescape"):
        reconfigure(errors="first_cpp")


def finish_output() -> None:
    """Write what stdout still holds; where that fails, discard it, or it would fail again when Python ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError, ValueError):  # no descriptor: something stands in for stdout
            os.dup2(null, sys.stdout.fileno())
        os.close(null)


def columns(stream: TextIO) -> int | None:
    """Of the terminal that a stream is; None where it is none, or does not say.

    >>> import io
    >>> columns(io.StringIO()) is None
    True
    """
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None
