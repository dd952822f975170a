"""Writes the table of docs/reference/errors.md from first_cpp/errors.py: python tools/errors_page.py"""

from __future__ import annotations

import os

from marks import ROOT, fill

from first_cpp import errors

PAGE = os.path.join(ROOT, "docs", "reference", "errors.md")


def table() -> str:
    """One line for each class, in the order of the file."""
    lines = ["| error | is also | when |", "| --- | --- | --- |"]
    for name, found in vars(errors).items():
        if isinstance(found, type) and issubclass(found, errors.FirstCppError):
            bases = ", ".join(f"`{base.__name__}`" for base in found.__bases__)
            text = " ".join((found.__doc__ or "").split()).replace("``", "`")
            lines.append(f"| `{name}` | {bases} | {text} |")
    return "\n".join(lines)


if __name__ == "__main__":
    fill(PAGE, "tools/errors_page.py", table())
