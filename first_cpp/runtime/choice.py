"""Which layers an answer skips: what is asked for, what the routers scored, what the model allows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..gguf.routers import Routers
from ..skip import Skip, choose_layers, layers_for_share
from .layers import Layers


@dataclass(frozen=True)
class Choice:
    """keep: the mean keep score of each layer, where scores decided. skipped: ascending. why: in a few words."""

    keep: tuple[float, ...] | None
    skipped: tuple[int, ...]
    why: str


def asked_share(skip: Skip, routers: Routers | None) -> float:
    """The share of layers that a setting asks routers for; 0 where they are not asked."""
    if skip == "auto":
        return routers.skip if routers is not None else 0.0
    return skip if isinstance(skip, float) else 0.0


def choose(
    skip: Skip, routers: Routers | None, layers: Layers, n_deciding: int, scores: npt.NDArray[np.float32] | None
) -> Choice:
    """What a prompt's answer skips.

    n_deciding: the prompt tokens that decide. scores: their keep scores, float32 [n_deciding, n_layer], NaN for tokens that
    have none; shorter, or None, where they were not read.
    """
    if isinstance(skip, tuple) and skip:
        return _fixed(skip, routers, layers)
    share = asked_share(skip, routers)
    if share == 0:
        why = "no routers" if skip == "auto" and routers is None else f"skip={skip!r}"
        return Choice(None, (), f"{why}: nothing is skipped")
    if layers.dense_because:
        return Choice(None, (), f"dense: {layers.dense_because}")
    assert routers is not None
    text = np.empty((0, 1)) if scores is None else scores[~np.isnan(scores).any(axis=1)].astype(np.float64)
    if scores is None or len(scores) < n_deciding or not len(text):
        return Choice(None, (), "dense: a part of the prompt came without scores (images, or unnamed hidden states)")
    keep = tuple(float(k) for k in text.mean(axis=0))  # each prompt position counts the same
    possible = [ok and not why for ok, why in zip(routers.skippable, layers.unskippable, strict=True)]
    skipped = choose_layers(keep, share, possible)
    asked = layers_for_share(share, len(keep))
    few = f", only {len(skipped)} are skippable" if len(skipped) < asked else ""
    return Choice(keep, skipped, f"lowest keep scores, share {share:g} asks for {asked} of {len(keep)} layers{few}")


def _fixed(asked: tuple[int, ...], routers: Routers | None, layers: Layers) -> Choice:
    if layers.dense_because:
        return Choice(None, (), f"dense: {layers.dense_because}")
    marked = () if routers is None else tuple(i for i in asked if not routers.skippable[i])
    stay = f", {list(marked)} stay: the router file marks them unskippable" if marked else ""
    return Choice(None, tuple(i for i in asked if i not in marked), f"fixed set{stay}")
