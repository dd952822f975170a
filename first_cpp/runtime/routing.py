"""What one prompt decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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

    >>> Routing(keep=None, skipped=(2, 3), n_layer=6, prompt_tokens=5, why="fixed set").share
    0.3333333333333333
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
