"""The rows of an evaluation: a model file and what it leaves out, the routed one among its baselines."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import FirstCppError
from ..options import skip_from_text


class RowError(FirstCppError, ValueError):
    """A row that cannot be evaluated."""


@dataclass(frozen=True)
class Row:
    """name: unique. share: asked for, what rows are compared at. skip: as `Llama` takes it. file: the GGUF."""

    name: str
    file: str
    share: float
    skip: float | tuple[int, ...] | None
    routers: str | None = None

    @property
    def system(self) -> str:
        """The name without the share."""
        return self.name.split("@", 1)[0]


def parse_row(text: str) -> Row:
    """A row as typed: NAME=FILE, NAME=FILE@0.25 or NAME=FILE@7,11. Raises RowError."""
    name, sign, rest = text.partition("=")
    file, _, skip_text = rest.partition("@")
    if not name or not sign or not file or "@" in name:
        raise RowError(f"--row {text!r} is not NAME=FILE or NAME=FILE@SKIP")
    skip = skip_from_text(skip_text or "none")
    if skip == "auto":
        raise RowError(f"--row {text!r}: auto has no share to be compared at; give a number or layers")
    assert not isinstance(skip, str)
    share = skip if isinstance(skip, float) else 0.0
    return Row(f"{name}@{skip_text}" if skip_text else name, file, share, skip)


def with_share(row: Row, n_layer: int) -> Row:
    """A row of fixed layers gets the share that they are."""
    if not isinstance(row.skip, tuple):
        return row
    return Row(row.name, row.file, len(row.skip) / n_layer, row.skip, row.routers)
