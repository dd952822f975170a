"""The rows of an evaluation: a model file and what it leaves out, the routed one among its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import FirstCppError
from ..options import skip_from_text
from ..policy import check_layers, fixed_layers


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


def parse_row(text: str, n_layer: int, order: Sequence[int] = (), seed: int = 0) -> Row:
    """A row as typed: NAME=FILE, NAME=FILE@0.25, NAME=FILE@7,11 or NAME=FILE@even:0.25, a set of `policy.fixed_layers`.

    Raises RowError, or SkipError for layers or shares that the model does not have.
    """
    name, sign, rest = text.partition("=")
    file, _, skip_text = rest.partition("@")
    if not name or not sign or not file or "@" in name:
        raise RowError(f"--row {text!r} is not NAME=FILE or NAME=FILE@SKIP")
    kind, colon, share_text = skip_text.partition(":")
    if colon:
        share = skip_from_text(share_text)
        if not isinstance(share, float):
            raise RowError(f"--row {text!r}: after {kind}: a share of layers is wanted, like 0.25")
        return Row(f"{name}@{share:g}", file, share, fixed_layers(kind, share, n_layer, order, seed))
    skip = skip_from_text(skip_text or "none")
    if skip == "auto":
        raise RowError(f"--row {text!r}: auto has no share to be compared at; give a number or layers")
    assert not isinstance(skip, str)
    check_layers(skip if isinstance(skip, tuple) else (), n_layer)
    if isinstance(skip, tuple):
        return Row(f"{name}@{len(skip)}/{n_layer}", file, len(skip) / n_layer, skip)
    return Row(f"{name}@{skip_text}" if skip_text else name, file, skip or 0.0, skip)


def names_influence(text: str) -> bool:
    """Whether a row as typed leaves out the layers of least block influence."""
    return text.partition("@")[2].startswith("influence:")
