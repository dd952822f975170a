"""The `skip` setting: from what a user gives to a checked value, and from a share of layers to a set of them."""

from __future__ import annotations

import itertools
import math
import numbers
import random
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from .errors import SkipError

Skip: TypeAlias = Literal["auto"] | float | tuple[int, ...] | None
"""A ``skip`` setting once checked: what the file recommends, nothing, a share of layers, or a fixed set."""

SkipSetting: TypeAlias = Literal["auto"] | float | Iterable[int] | None
"""A ``skip`` setting as given: ``Llama(skip=)``, ``llm.skip = ``, and ``skip=`` of a call."""

MOST_LAYERS = 4096
_ALLOWED = '"auto", None, a share from 0 up to, not including, 1, or a list of layer numbers'
_SHARE = "a share of layers is at least 0 and below 1"
_TYPED = "auto, none, a share like 0.3, or layers like 7,11; one layer: 7,"


def parse_skip(value: object) -> Skip:
    """Check the form of a ``skip`` setting; layer numbers are checked against a model by `check_layers`.

    Raises SkipError naming the value and what is allowed.
    """
    if value is None:
        return None
    if isinstance(value, str) and value == "auto":
        return "auto"
    if isinstance(value, (bool, str, bytes)):
        raise SkipError(f"skip={value!r} is not {_ALLOWED}")
    if isinstance(value, numbers.Real):
        try:
            share = float(value)
        except OverflowError:
            share = math.inf
        if not math.isfinite(share) or not 0 <= share < 1:
            raise SkipError(f"skip={value!r}: {_SHARE}{_one_layer(share, 'skip=[{}]')}")
        return share
    try:
        layers = list(itertools.islice(value, MOST_LAYERS + 1))  # type: ignore[call-overload]
    except TypeError:  # numpy's arrays without a dimension say they are iterable
        raise SkipError(f"skip={value!r} is not {_ALLOWED}") from None
    if len(layers) > MOST_LAYERS:
        raise SkipError(f"skip has more than {MOST_LAYERS} entries; no model has as many layers")
    return _parse_layers(layers)


def _parse_layers(value: Iterable[object]) -> tuple[int, ...]:
    layers = []
    for layer in value:
        if isinstance(layer, bool) or not isinstance(layer, numbers.Integral):
            raise SkipError(f"skip: {layer!r} is not a layer number; allowed: {_ALLOWED}")
        layers.append(int(layer))
    seen: set[int] = set()
    for layer in layers:
        if layer < 0:
            raise SkipError(f"skip: layer {layer} is below 0; layers count from 0")
        if layer in seen:
            raise SkipError(f"skip: layer {layer} is given more than once")
        seen.add(layer)
    return tuple(sorted(layers))


def skip_from_text(text: str) -> Skip:
    """A skip setting as typed: auto, none, a share like 0.3, or layers like 7,11 or 7, or [7].

    Raises SkipError, in the words of somebody who types.
    """
    word = text.strip().lower()
    if word in ("auto", "none"):
        return "auto" if word == "auto" else None
    if re.fullmatch(r"\[\s*\d+(\s*,\s*\d+)*\s*\]|\d+(\s*,\s*\d+)+|\d+\s*,", word):
        return parse_skip([int(layer) for layer in re.findall(r"\d+", word)])
    try:
        share = float(word)
    except ValueError:
        raise SkipError(f"skip={text}: allowed are {_TYPED}") from None
    if not 0 <= share < 1:  # as NaN is not
        raise SkipError(f"skip={text}: {_SHARE}{_one_layer(share, '{},')}")
    return share


def _one_layer(number: float, how: str) -> str:
    """What to write for one layer, where a number could be meant as that. how: with {} for the layer."""
    layer = math.isfinite(number) and number >= 1 and number == int(number)
    return f"; for layer {number:.0f} alone write {how.format(int(number))}" if layer else ""


def no_routers(asked: str, path: str) -> str:
    """What to say where something asked for needs routers that the model does not have, to Python and on the command line.

    path: the model's file.

    >>> no_routers("skip=0.25", "model.gguf")[:56]
    'skip=0.25 needs routers and there are none in model.gguf'
    """
    return (
        f"{asked} needs routers and there are none in {path}: `first-cpp calibrate -m {shlex.quote(path)} --out FILE` makes a "
        "model with some; or give a file that has them, routers=FILE (--routers FILE)"
    )


def share_without_routers(share: float, path: str) -> SkipError:
    """The error of a share that is asked for where there are no routers; layers by number need none."""
    return SkipError(f"{no_routers(f'skip={share:g}', path)}, or layers by number, skip=[7, 11] (--skip 7,11)")


def check_layers(layers: Sequence[int], n_layer: int) -> None:
    """Raise SkipError unless `layers` are some, but not all, of a model's `n_layer` layers."""
    for layer in layers:
        if layer >= n_layer:
            raise SkipError(f"skip: layer {layer} does not exist; this model has layers 0 to {n_layer - 1}")
    if layers and len(set(layers)) >= n_layer:
        raise SkipError(f"skip: all {n_layer} layers would be skipped; at least one must stay")


def layers_for_share(share: float, n_layer: int) -> int:
    """Number of layers that a share means, to the nearest whole one. Raises SkipError if none would stay."""
    # a share stored as float32, off by up to 3e-8, means what was written
    count = math.floor((share + 1e-7) * n_layer + 0.5)
    if count >= n_layer:
        raise SkipError(f"skip={share:g}: this would skip all {n_layer} layers; at most {(n_layer - 1) / n_layer:.4g}")
    return count


def choose_layers(keep: Sequence[float], share: float, skippable: Sequence[bool]) -> tuple[int, ...]:
    """The layers with the lowest keep scores, as many as the share asks, unskippable ones spared.

    Equal scores go by layer number. Fewer layers than asked come back when too few are skippable.
    """
    count = layers_for_share(share, len(keep))
    candidates = sorted((layer for layer in range(len(keep)) if skippable[layer]), key=lambda layer: (keep[layer], layer))
    return tuple(sorted(candidates[:count]))


FIXED = ("influence", "even", "random", "last")
"""Sets of layers that do not look at the prompt."""


def needs_order(kind: str) -> bool:
    """Whether a kind of set is the first layers of an order: found by search or block influence, or given.

    >>> needs_order("search"), needs_order("even")
    (True, False)
    """
    return kind in ("search", "influence", "given")


def fixed_layers(kind: str, share: float, n_layer: int, order: Sequence[int] = (), seed: int = 0) -> tuple[int, ...]:
    """The layers that an input-blind choice skips.

    influence, search, given: the first of `order`, all layers from the least block influence up, as a search found them, or
    as somebody gave them.
    even: spread over the depth, first and last layer spared ("unified"). random: drawn by `seed`. last: the deepest ones
    (early exit). Raises SkipError for another kind.
    """
    count = layers_for_share(share, n_layer)
    if needs_order(kind):
        return tuple(sorted(order[:count]))
    if kind == "even":
        return tuple(sorted({round((i + 1) * (n_layer - 1) / (count + 1)) for i in range(count)}))
    if kind == "random":
        return tuple(sorted(random.Random(seed).sample(range(n_layer), count)))
    if kind == "last":
        return tuple(range(n_layer - count, n_layer))
    raise SkipError(f"layers {kind!r} is unknown; allowed: {', '.join(FIXED)}")


def skip_in_words(skip: Skip) -> str:
    """A skip setting as people write it, and as `skip_from_text` reads it.

    >>> [skip_in_words(skip) for skip in ("auto", None, 0.25, (7,), (7, 11))]
    ['auto', 'none', '0.25', '7,', '7,11']
    """
    if isinstance(skip, tuple):
        return ",".join(map(str, skip)) + "," * (len(skip) == 1) if skip else "none"
    return "none" if not skip else f"{skip:g}" if isinstance(skip, float) else skip
