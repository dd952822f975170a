"""What keeps a mistake of the caller from crashing the process: a second thread, a closed model, a mistyped keyword."""

from __future__ import annotations

import difflib
import inspect
import threading
from typing import Any

import llama_cpp

from .errors import BusyError, ClosedError

_BASE_INIT = inspect.signature(llama_cpp.Llama.__init__)


class OneThread:
    """llama.cpp's context serves one thread at a time; a second one gets an error instead of a crash."""

    __slots__ = ("_acquire", "_release")

    def __init__(self) -> None:
        lock = threading.RLock()
        self._acquire, self._release = lock.acquire, lock.release

    def __enter__(self) -> None:
        if not self._acquire(False):
            raise BusyError("this Llama is at work in another thread; wait for it, or load a second one")

    def __exit__(self, *exception: object) -> None:
        self._release()


class _Closed:
    def __getattr__(self, name: str) -> Any:
        raise ClosedError("this Llama is closed")


CLOSED = _Closed()


def check_keywords(given: dict[str, Any]) -> None:
    """Raise TypeError for a keyword that neither class knows; the base class would swallow it."""
    known = [name for name, p in _BASE_INIT.parameters.items() if p.kind is p.KEYWORD_ONLY]
    known += ["model_path", "skip", "routers", "release_kv", "prefill", "route_tokens", "kv", "strict"]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"Llama() got an unexpected keyword argument {name!r}{hint}")
