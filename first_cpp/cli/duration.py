"""Lengths of time as plans and summaries say them."""

from __future__ import annotations


def in_words(seconds: float) -> str:
    """A length of time, rounded.

    >>> in_words(20), in_words(90), in_words(200), in_words(8000)
    ('20 seconds', '90 seconds', '4 minutes', '2 hours 14 minutes')
    """
    if seconds < 120:
        return f"{max(1, round(seconds))} second{'s' * (round(seconds) > 1)}"
    minutes = -(-int(seconds) // 60)
    hours, rest = divmod(minutes, 60)
    parts = [f"{hours} hour{'s' * (hours > 1)}"] * (hours > 0) + [f"{rest} minute{'s' * (rest > 1)}"] * (rest > 0)
    return " ".join(parts)
