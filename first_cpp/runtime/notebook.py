"""Small pieces of HTML for notebooks: in the page's own colours, light or dark, with nothing to load."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_HEIGHT = 40  # pixels of a keep score of 1
_LEAST = 3  # pixels that stay visible


def layer_bars(skipped: Sequence[int], n_layer: int, keep: Sequence[float] | None = None) -> str:
    """One bar a layer, the first layer first: filled where it is computed, an outline where it is skipped.

    keep: the layers' keep scores, 0 to 1, which are the heights; without them all bars are of one height.

    >>> layer_bars([1], n_layer=2).count("layer 1: skipped")
    1
    """
    bars = "".join(_bar(layer, layer in skipped, keep[layer] if keep else None) for layer in range(n_layer))
    row = f"display:flex;align-items:flex-end;gap:2px;height:{_HEIGHT + 2}px;margin:4px 0"
    return f'<div role="img" aria-label="{n_layer - len(skipped)} of {n_layer} layers computed" style="{row}">{bars}</div>'


def _bar(layer: int, skipped: bool, keep: float | None) -> str:
    score = "" if keep is None else f", keep score {keep:.3f}"
    title = f"layer {layer}: {'skipped' if skipped else 'computed'}{score}"
    height = max(_LEAST, round(_HEIGHT * (0.5 if keep is None else min(1.0, max(0.0, keep)))))
    look = "opacity:0.55" if skipped else "background:currentColor;opacity:0.8"
    box = "box-sizing:border-box;border:1px solid currentColor;border-radius:2px"
    return f'<span title="{title}" style="width:10px;height:{height}px;{box};{look}"></span>'


def notes(words: Iterable[str], heading: str = "") -> str:
    """One line of text under a heading; what it holds may come from a file.

    >>> notes(["6 layers"], heading="<b>")
    '<div><b>&lt;b&gt;</b> 6 layers</div>'
    """
    first = f"<b>{html.escape(heading)}</b> " if heading else ""
    return f"<div>{first}{html.escape(' · '.join(words))}</div>"
