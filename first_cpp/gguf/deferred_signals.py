"""Signals while llama.cpp works and calls Python back: their handlers run when it has returned."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class DeferredSignals:
    """While it is entered, SIGINT and SIGTERM are noted; their handlers run when it is left.

    Python runs a handler amid whatever Python code comes next: where that is a callback of llama.cpp's, as of its log, ctypes
    prints the exception and goes on. arrived: the signals noted.

    >>> with DeferredSignals() as signals:
    ...     pass
    >>> signals.arrived
    []
    """

    def __init__(self) -> None:
        self.arrived: list[int] = []
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.arrived.append(number)

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        handlers, self._handlers = self._handlers, {}
        for number in self.arrived:
            handlers[number](number, None)
