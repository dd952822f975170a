"""Text from a file or a client, made fit to be shown: a terminal must not take it for commands."""

from __future__ import annotations

import unicodedata


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


def _escaped(character: str) -> str:
    if character.isascii():
        return character if character.isprintable() else repr(character)[1:-1]
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return character.encode("unicode_escape").decode() if hidden else character
