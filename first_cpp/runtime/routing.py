"""What one prompt decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .notebook import layer_bars, notes


@dataclass(frozen=True)
class Routing:
    """What one prompt decided.

    keep: mean keep score of each layer over the prompt, 0..1 (DESIGN: mean of sigmoid); None when no scores were read.
    skipped: the layers that decoding skips, ascending.
    n_layer: layers of the model.
    prompt_tokens: prompt tokens that the decision stands on, reused ones included.
    why: the reason in a few words.
    cost: what skipping is predicted to cost, KL in nats per token, 0 where nothing is skipped; None where nothing predicts.
    changed: the share of the answer's tokens that this is expected to change; None where nothing says so.
    level: the number of layers of the level that was taken, 0 for none; None where no level was.
    kv_bytes: bytes of the KV cache in all.
    kv_bytes_used: bytes of its cells that hold the prompt.
    kv_bytes_released: bytes given back to the system (``release_kv=True``).

    In a notebook it is shown as one bar a layer.

    >>> routing = Routing(keep=None, skipped=(2, 3), n_layer=6, prompt_tokens=5, why="fixed set")
    >>> routing.share
    0.3333333333333333
    >>> routing
    <Routing: 4 of 6 layers ##..##, fixed set>
    """

    keep: tuple[float, ...] | None
    skipped: tuple[int, ...]
    n_layer: int
    prompt_tokens: int
    why: str
    cost: float | None = None
    level: int | None = None
    changed: float | None = None
    kv_bytes: int = 0
    kv_bytes_used: int = 0
    kv_bytes_released: int = 0

    @property
    def share(self) -> float:
        """Skipped layers / all layers."""
        return len(self.skipped) / self.n_layer

    @property
    def layers(self) -> str:
        """How many layers decoding computes, and a picture of them.

        >>> Routing(keep=None, skipped=(2, 3), n_layer=6, prompt_tokens=5, why="fixed set").layers
        '4 of 6 layers ##..##'
        """
        return f"{self.n_layer - len(self.skipped)} of {self.n_layer} layers {picture(self.skipped, self.n_layer)}"

    def __repr__(self) -> str:
        cost = f", predicted cost {self.cost:.3g} nats a token in all" if self.cost else ""
        return f"<Routing: {self.layers}{cost}, {self.why}>"

    def as_html(self) -> str:
        """One bar a layer, and what was decided.

        >>> Routing(keep=None, skipped=(2, 3), n_layer=6, prompt_tokens=5, why="fixed set").as_html().count("<span")
        6
        """
        words = [f"{self.n_layer - len(self.skipped)} of {self.n_layer} layers computed"]
        if self.cost:
            words.append(f"predicted cost {self.cost:.3g} nats a token in all")
        if self.changed is not None:
            words.append(words_changed(self.changed))
        return layer_bars(self.skipped, self.n_layer, self.keep) + notes([*words, self.why])

    _repr_html_ = as_html


def words_changed(share: float) -> str:
    """The share of tokens that skipping is expected to change, as people read it.

    >>> words_changed(0.031), words_changed(0.001)
    ('about 3 in 100 words changed', 'fewer than 1 in 100 words changed')
    """
    number = round(100 * share)
    return f"about {number} in 100 words changed" if number else "fewer than 1 in 100 words changed"


def picture(skipped: Sequence[int], n_layer: int) -> str:
    """One sign a layer, the first layer first: # computed, . skipped."""
    return "".join("." if layer in skipped else "#" for layer in range(n_layer))
