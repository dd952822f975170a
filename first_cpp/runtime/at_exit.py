"""The end of the interpreter amid work of a daemon thread: libraries are torn down then, and nothing may compute in them."""

from __future__ import annotations

import atexit
import time
import weakref
from typing import Protocol

from .one_thread import OneThread

SECONDS = 5.0
"""What is waited for the evaluations to end, which takes them a graph node; loading and embedding may take longer."""


class Aborts(Protocol):
    """What a model computes with."""

    def abort(self, on: bool) -> None:
        """While on, evaluations end as soon as they can."""
        ...


_models: weakref.WeakKeyDictionary[OneThread, weakref.ref[Aborts]] = weakref.WeakKeyDictionary()


def end_at_exit(lock: OneThread, layers: Aborts) -> None:
    """When the interpreter ends, end what this model is at, and let no thread begin anything with it."""
    _models[lock] = weakref.ref(layers)


@atexit.register
def _end_all() -> None:
    OneThread.begin_to_end()
    until = time.monotonic() + SECONDS
    for lock, of in [*_models.items()]:
        layers = of()
        while layers is not None and not lock.forked and not lock.keep(0.02) and time.monotonic() < until:
            layers.abort(True)  # again: what has just begun is not concerned
