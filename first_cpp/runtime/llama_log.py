"""What llama.cpp logs through llama_cpp's logger: by its true levels, and hushed where it is about something asked for."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from llama_cpp import _logger

_LOG = logging.getLogger("llama-cpp-python")
_ALL = logging.CRITICAL + 1
_GGML_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}  # ggml.h


@contextlib.contextmanager
def ggml_levels() -> Iterator[None]:
    """llama.cpp's messages count by ggml's levels inside: llama_cpp's table is one off, and with verbose=False shows warnings
    and hides errors. For programs of our own; `Llama` stays as llama_cpp has it."""
    table = _logger.GGML_LOG_LEVEL_TO_LOGGING_LEVEL
    before = dict(table)
    table.update(_GGML_LEVELS)
    try:
        yield
    finally:
        table.update(before)


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
