"""One answer: what its prompt decided, how long it takes, and what ends it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """How long an answer took so far. Time that the consumer of its tokens spends between them does not count.

    n_tokens: tokens generated. ttft: seconds to the first one, 0 before it. tpot: mean seconds per token after it, 0 before
    the second.
    """

    n_tokens: int = 0
    ttft: float = 0.0
    tpot: float = 0.0


class Answer:
    """The state of one answer: nothing decided during prefill, then the layers that its decoding leaves out."""

    __slots__ = ("_resumed", "cancelled", "decode", "left_out", "n_tokens", "running", "ttft")

    def __init__(self) -> None:
        self.left_out: frozenset[int] | None = None
        self.cancelled = False
        self.running = False
        self.n_tokens = 0
        self.ttft = 0.0
        self.decode = 0.0
        self._resumed = time.perf_counter()

    def resume(self) -> None:
        """Start the clock for the next token."""
        self._resumed = time.perf_counter()

    def count(self) -> None:
        """A token is there: stop the clock."""
        elapsed = time.perf_counter() - self._resumed
        if self.n_tokens == 0:
            self.ttft = elapsed
        else:
            self.decode += elapsed
        self.n_tokens += 1

    @property
    def timing(self) -> Timing:
        return Timing(self.n_tokens, self.ttft, self.decode / (self.n_tokens - 1) if self.n_tokens > 1 else 0.0)


class ContextEnd:
    """A stopping criterion beside the caller's `further` one: whether a completion ran into the end of the context.

    The base class looks at max_tokens only where no character is cut in two, so that an answer may come to need more room.
    """

    __slots__ = ("further", "reached")

    def __init__(self, further: Callable[..., Any] | None) -> None:
        self.further = further
        self.reached = False

    def __call__(self, tokens: Any, logits: Any) -> bool:
        return self.reached or (self.further is not None and bool(self.further(tokens, logits)))
