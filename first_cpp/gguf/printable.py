"""Text from a file, a client or a model, made fit to be shown: a terminal must not take it for commands.

In messages by `printable`, which shows what is hidden; in names by `is_hidden`; in answers, which have lines, and signs joined
by formatting characters, by `without_controls`.
"""

from __future__ import annotations

import re
import unicodedata

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str, limit: int | None = None) -> str:
    r"""`text` with control and formatting characters escaped, cut to `limit` characters where it is longer.

    Escaped are what moves the cursor, starts an escape sequence, ends a line or turns the direction of writing (Unicode's
    categories Cc, Cf, Cs, Co, Zl, Zp).

    >>> print(printable("red \x1b[31m, bell \a, two\nlines"))
    red \x1b[31m, bell \x07, two\nlines
    >>> printable("a long text", limit=6)
    'a lon…'
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(_escaped(character) for character in text)


def without_controls(text: str) -> str:
    r"""`text` without control characters, but for tabs and line feeds.

    >>> without_controls("a\x1b[2Jb\n")
    'a[2Jb\n'
    """
    return _CONTROL.sub("", text)


def is_hidden(character: str) -> bool:
    r"""Whether a character is one that `printable` escapes.

    >>> is_hidden("\x1b"), is_hidden("\u202e"), is_hidden("é")
    (True, True, False)
    """
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escaped(character: str) -> str:
    if not is_hidden(character):
        return character
    return repr(character)[1:-1] if character.isascii() else character.encode("unicode_escape").decode()
