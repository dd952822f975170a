"""The idle pass in a thread of its own, for programs that wait for a person or a request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from ..errors import FirstCppError
from .streaming import Cancellable

_WAIT = 0.01  # seconds between two requests to end


class CatchesUp(Cancellable, Protocol):
    """A model that can catch up: a `first_cpp.Llama`."""

    def catch_up(self) -> bool: ...


class IdleThread:
    """Runs `llm.catch_up()` between `begin` and `pause`. Both are for the one thread that uses the model.

    ended: called in this thread when a pass has ended, by itself or not, before `pause` returns.

    >>> from first_cpp import Llama
    >>> llm = Llama("model-first.gguf", verbose=False)
    >>> answer = llm.create_completion("Hello", max_tokens=9, temperature=0)
    >>> idle = IdleThread(llm)
    >>> idle.begin()
    >>> idle.wait()
    True
    >>> llm.fidelity.positions == llm.timing.n_tokens - 1
    True
    """

    def __init__(self, llm: CatchesUp, ended: Callable[[], object] | None = None) -> None:
        self._llm, self._ended = llm, ended
        self._thread: threading.Thread | None = None
        self.error: Exception | None = None
        """What ended the last pass, where this model cannot catch up."""

    def begin(self) -> None:
        """An answer has ended, and nobody waits for the model."""
        self.pause()
        self._thread = threading.Thread(target=self._work, name="first_cpp idle pass", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """End the pass within a graph node, and wait until it has ended: the model is free, and may be freed."""
        while self._thread is not None and self._thread.is_alive():
            self._llm.cancel(self._thread.ident)  # again: a pass that had not begun is not concerned
            self._thread.join(_WAIT)
        self._thread = None

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the pass to end by itself; returns whether it has."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _work(self) -> None:
        try:
            self._llm.catch_up()
            self.error = None
        except (FirstCppError, RuntimeError) as error:
            self.error = error
        if self._ended is not None:
            self._ended()
