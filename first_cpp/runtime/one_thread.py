"""One thread at a time, of one process: others get an error instead of a crash."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ..errors import BusyError, ClosedError, ForkedError

P = ParamSpec("P")
T = TypeVar("T")


class _Process:
    """Whether this process was forked from one that had loaded models: OpenMP's threads stay behind, and
    waiting for them never returns."""

    loaded = False
    forked_loaded = False

    @classmethod
    def after_fork(cls) -> None:
        cls.forked_loaded |= cls.loaded


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Process.after_fork)


class OneThread:
    """llama.cpp's context serves one thread at a time, of one process; others get an error instead of a crash."""

    __slots__ = ("_acquire", "_release")

    def __init__(self) -> None:
        self.check_process()
        _Process.loaded = True
        lock = threading.RLock()
        self._acquire, self._release = lock.acquire, lock.release

    @property
    def forked(self) -> bool:
        return _Process.forked_loaded

    def check_process(self) -> None:
        if _Process.forked_loaded:
            raise ForkedError(
                "a Llama was loaded before this process was forked, and llama.cpp's threads are not here: load models "
                'after the fork alone, or start processes by multiprocessing\'s "spawn"'
            )

    def __enter__(self) -> None:
        if _Process.forked_loaded:
            self.check_process()
        if not self._acquire(False):
            raise BusyError("this Llama is at work in another thread; wait for it, or load a second one")

    def __exit__(self, *exception: object) -> None:
        self._release()


def exclusive(method: Callable[P, T]) -> Callable[P, T]:
    """A method of a model that holds its `_exclusive` lock while it runs."""

    @functools.wraps(method)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        model: Any = args[0]
        with model._exclusive:
            return method(*args, **kwargs)

    return locked


class _Closed:
    def __getattr__(self, name: str) -> Any:
        raise ClosedError("this Llama is closed")


CLOSED = _Closed()
