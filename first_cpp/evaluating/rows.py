"""The rows of an evaluation: a model file and what it leaves out, the routed one among its baselines."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import FirstCppError
from ..options import skip_from_text
from ..policy import layers_for_share

STATIC = ("influence", "even", "random", "last")
"""Sets of layers that do not look at the prompt."""


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


def static_layers(kind: str, share: float, n_layer: int, influence: Sequence[float] = (), seed: int = 0) -> tuple[int, ...]:
    """The layers that an input-blind baseline leaves out.

    influence: those of the lowest block influence. even: spread over the depth, first and last layer spared ("unified").
    random: drawn by `seed`. last: the deepest ones (early exit).
    """
    count = layers_for_share(share, n_layer)
    if kind == "influence":
        return tuple(sorted(sorted(range(n_layer), key=lambda layer: (influence[layer], layer))[:count]))
    if kind == "even":
        return tuple(sorted({round((i + 1) * (n_layer - 1) / (count + 1)) for i in range(count)}))
    if kind == "random":
        return tuple(sorted(random.Random(seed).sample(range(n_layer), count)))
    if kind == "last":
        return tuple(range(n_layer - count, n_layer))
    raise RowError(f"baseline {kind!r} is unknown; allowed: {', '.join(STATIC)}, all, none")


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
