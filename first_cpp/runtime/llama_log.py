"""What llama.cpp logs through llama_cpp's logger, hushed where it is about something that was asked for."""

from __future__ import annotations

import logging
import threading

_LOG = logging.getLogger("llama-cpp-python")
_ALL = logging.CRITICAL + 1
_lock = threading.RLock()  # a signal's handler may cancel, too
_n_aborting = 0
_level = logging.NOTSET


def hush(on: bool) -> None:
    """One more model, or one fewer, whose evaluation is being ended on purpose: llama.cpp warns of that.

    llama_cpp shows warnings as errors, with verbose=False too.
    """
    global _n_aborting, _level
    with _lock:
        _n_aborting += 1 if on else -1
        if on and _n_aborting == 1:
            _level = _LOG.level
            _LOG.setLevel(_ALL)
        elif not _n_aborting and _LOG.level == _ALL:  # else somebody has set it meanwhile
            _LOG.setLevel(_level)
