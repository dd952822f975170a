"""One thread at a time, of one process: others get an error instead of a crash."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from ..errors import BusyError, ClosedError, ForkedError

P = ParamSpec("P")
T = TypeVar("T")


class _Process:
    """Whether this process was forked from one that had loaded models: OpenMP's threads stay behind, and
    waiting for them never returns."""

    loaded = False
    forked_loaded = False
    ending_thread = 0
    """The one that ends the interpreter; the others are daemons, which nobody waits for."""

    @classmethod
    def after_fork(cls) -> None:
        cls.forked_loaded |= cls.loaded

    @classmethod
    def check_not_ending(cls) -> None:
        if cls.ending_thread not in (0, threading.get_ident()):
            raise SystemExit from None  # ends a thread without a word


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Process.after_fork)


class OneThread:
    """llama.cpp's context serves one thread at a time, of one process; others get an error instead of a crash."""

    __slots__ = ("__weakref__", "_acquire", "_gate", "_giving_way", "_interrupt", "_release", "entries")

    def __init__(self) -> None:
        self.check_process()
        _Process.loaded = True
        lock = threading.RLock()
        self._acquire, self._release = lock.acquire, lock.release
        self._interrupt: Callable[[bool], None] | None = None
        self._giving_way = 0
        """The thread whose work that is."""
        self._gate = threading.RLock()  # a signal's handler may interrupt, too
        self.entries = 0
        """How often the model was entered, not counting work that gives way."""

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
            _Process.check_not_ending()
            self._ask_to_give_way()
        self.entries += 1

    def __exit__(self, *exception: object) -> None:
        self._release()
        if exception[0] is not None and _Process.ending_thread:
            _Process.check_not_ending()

    @staticmethod
    def begin_to_end() -> None:
        """The interpreter ends, in this thread: what others are at with a model ends without an error of theirs."""
        _Process.ending_thread = threading.get_ident()

    def keep(self, seconds: float) -> bool:
        """Take the model for good, waiting that long for the thread that has it; returns whether it is ours."""
        return self._acquire(timeout=seconds)

    def _ask_to_give_way(self) -> None:
        """Another thread has the model: wait for it where its work gives way, which it does at once."""
        with self._gate:  # such work neither begins nor ends meanwhile: whoever comes after it is not interrupted
            if not self.interrupt():
                if self._acquire(False):
                    return
                raise BusyError("this Llama is at work in another thread; wait for it, or load a second one")
        self._acquire()

    def interrupt(self, thread: int | None = None) -> bool:
        """End the work that gives way, from any thread, without waiting for it. Returns whether there was any.

        thread: only where it is that thread's.
        """
        with self._gate:
            if self._interrupt is None or thread not in (None, self._giving_way):
                return False
            self._interrupt(True)
            return True

    @contextlib.contextmanager
    def giving_way(self, interrupt: Callable[[bool], None]) -> Iterator[bool]:
        """Hold the model, if it is free, for work that gives way to other threads. Gives whether it was free.

        interrupt: called with True by a thread that wants the model, and with False when the work has ended.
        """
        self.check_process()
        with self._gate:
            held = self._acquire(False)
            if held:
                self._interrupt, self._giving_way = interrupt, threading.get_ident()
        try:
            yield held
        finally:
            if held:
                with self._gate:
                    self._interrupt = None
                    interrupt(False)
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
        if name.startswith("__"):
            raise AttributeError(name)  # Python itself looks for these
        raise ClosedError("this Llama is closed")


CLOSED = _Closed()
