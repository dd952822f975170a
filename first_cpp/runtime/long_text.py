"""Texts that are too long for a context, told by their beginning: some tokenizers take a time that grows with the square."""

from __future__ import annotations

from collections.abc import Callable, Sequence

SLICE = 8192  # bytes read at once
_CUT = 16  # tokens that a cut may add: the beginning of a text, and a token that became several


def least_tokens(tokenize: Callable[[bytes], Sequence[int]], text: bytes, most: int) -> int:
    """At least how many tokens `text` has: 0 for a text that is read quickly, and reading ends beyond `most`.

    >>> least_tokens(lambda part: part.split(), b"word " * 100_000, most=1000) > 1000
    True
    >>> least_tokens(lambda part: part.split(), b"word " * 100, most=1000)
    0
    """
    if len(text) <= max(SLICE, most):
        return 0
    count = start = 0
    while start < len(text) and count <= most:
        end = _whole_character(text, start + SLICE)
        count += max(0, len(tokenize(text[start:end])) - _CUT)
        start = end
    return count


def _whole_character(text: bytes, end: int) -> int:
    """The end of a part that cuts no character of UTF-8 in two."""
    for near in range(end, max(end - 4, 0), -1):
        if near >= len(text) or text[near] & 0xC0 != 0x80:
            return min(near, len(text))
    return end
