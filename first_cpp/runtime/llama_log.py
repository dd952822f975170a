"""What llama.cpp logs through llama_cpp's logger, hushed where it is about something that was asked for."""

from __future__ import annotations

import logging
import threading

_LOG = logging.getLogger("llama-cpp-python")
_ALL = logging.CRITICAL + 1


class _Hush:
    """llama.cpp warns of evaluations that end on purpose, and llama_cpp shows warnings as errors, with verbose=False too."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may cancel, too
        self._n = 0
        self._level = logging.NOTSET

    def __call__(self, on: bool) -> None:
        """One more model, or one fewer, whose evaluation is being ended."""
        with self._lock:
            self._n += 1 if on else -1
            if on and self._n == 1:
                self._level = _LOG.level
                _LOG.setLevel(_ALL)
            elif not self._n and _LOG.level == _ALL:  # else somebody has set it meanwhile
                _LOG.setLevel(self._level)


hush = _Hush()
