"""Another handler of a signal, for a while."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def handling(signum: int, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle a signal inside; not where somebody else does, nor in a thread, which may not.

    >>> seen = []
    >>> with handling(signal.SIGINT, lambda signum, _: seen.append(signum)):
    ...     signal.raise_signal(signal.SIGINT)
    >>> seen == [signal.SIGINT]
    True
    """
    before = signal.getsignal(signum)
    if threading.current_thread() is not threading.main_thread() or before not in (signal.SIG_DFL, signal.default_int_handler):
        yield
        return
    signal.signal(signum, handler)
    try:
        yield
    finally:
        signal.signal(signum, before)
