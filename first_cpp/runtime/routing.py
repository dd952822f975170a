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
    kv_bytes: int = 0
    kv_bytes_used: int = 0
    kv_bytes_released: int = 0

    @property
    def share(self) -> float:
        """Skipped layers / all layers."""
        return len(self.skipped) / self.n_layer


def picture(skipped: Sequence[int], n_layer: int) -> str:
    """One sign a layer, the first layer first: # computed, . skipped."""
    return "".join("." if layer in skipped else "#" for layer in range(n_layer))
