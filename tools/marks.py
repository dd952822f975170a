"""The parts of a document that a command writes: between `<!-- written by NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import os

ROOT = os.path.join(os.path.dirname(__file__), os.pardir)
NOTES = os.path.join(ROOT, "research", "notes.md")


def fill(path: str, writer: str, text: str) -> None:
    """Put `text` between the marks of `writer`. Raises ValueError where the document has none."""
    begin, end = f"<!-- written by {writer} -->\n", "<!-- end -->"
    with open(path, encoding="utf-8") as file:
        before, mark, rest = file.read().partition(begin)
    if not mark or end not in rest:
        raise ValueError(f"{path} has no part written by {writer}")
    with open(path, "w", encoding="utf-8") as file:
        file.write(before + begin + text.strip() + "\n" + end + rest.partition(end)[2])
