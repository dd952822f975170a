"""The rows of an evaluation: a model file and what it leaves out, the routed one among its baselines."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FirstCppError, MissingFileError
from ..gguf.model_file import open_gguf
from ..gguf.router_format import read_routers, trained_set
from ..skip import check_layers, fixed_layers, skip_from_text


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

    def identity(self) -> list[Any]:
        """What answers depend on: the files' fingerprints and what is left out, fit for JSON."""
        skip = list(self.skip) if isinstance(self.skip, tuple) else self.skip
        return [fingerprint(self.file), fingerprint(self.routers) if self.routers else None, skip]


def parse_row(text: str, n_layer: int, influence: Callable[[], Sequence[int]], seed: int = 0) -> Row:
    """A row as typed: NAME=FILE, NAME=FILE@0.25, NAME=FILE@7,11 or NAME=FILE@even:0.25, a set of `policy.fixed_layers`.

    A set of the kind that the file's LoRA was trained for is the one it was trained for. influence: called for an order
    of all layers that the file does not name. Raises MissingFileError, RowError, or SkipError for layers or shares that
    the model does not have.
    """
    name, sign, rest = text.partition("=")
    file, _, skip_text = rest.partition("@")
    if not name or not sign or not file or "@" in name:
        raise RowError(f"--row {text!r} is not NAME=FILE or NAME=FILE@SKIP")
    if not os.path.isfile(file):
        raise MissingFileError(f"--row {name}: there is no file {file}")
    kind, colon, share_text = skip_text.partition(":")
    if colon:
        share = skip_from_text(share_text)
        if not isinstance(share, float):
            raise RowError(f"--row {text!r}: after {kind}: a share of layers is wanted, like 0.25")
        return Row(f"{name}@{share:g}", file, share, _set(file, kind, share, n_layer, influence, seed))
    skip = skip_from_text(skip_text or "none")
    if skip == "auto":
        raise RowError(f"--row {text!r}: auto has no share to be compared at; give a number or layers")
    assert not isinstance(skip, str)
    check_layers(skip if isinstance(skip, tuple) else (), n_layer)
    if isinstance(skip, tuple):
        return Row(f"{name}@{len(skip)}/{n_layer}", file, len(skip) / n_layer, skip)
    return Row(f"{name}@{skip_text}" if skip_text else name, file, skip or 0.0, skip)


def _set(
    file: str, kind: str, share: float, n_layer: int, influence: Callable[[], Sequence[int]], seed: int
) -> tuple[int, ...]:
    """The fixed set of layers that a row of this kind leaves out."""
    trained = trained_set(read_routers(open_gguf(file), file), kind, n_layer, file)
    if trained is not None:
        return fixed_layers(kind, share, n_layer, *trained)
    if kind in ("search", "given"):
        raise RowError(
            f"{file} was not trained with layers of the kind {kind!r} (first-cpp train --layers); give layers instead"
        )
    return fixed_layers(kind, share, n_layer, influence() if kind == "influence" else (), seed)


def fingerprint(path: str) -> str:
    """Of a file's size and of 64 pieces spread over it: other weights, other routers, another fingerprint."""
    size, piece = os.path.getsize(path), 1 << 16
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(64):
            file.seek(max(0, size - piece) * i // 63)
            digest.update(file.read(piece))
    return digest.hexdigest()
