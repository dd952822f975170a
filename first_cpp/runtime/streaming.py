"""An answer made in a thread of its own: Ctrl-C, or a consumer that leaves, ends it while llama.cpp computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
_WAIT = 0.1  # seconds; a wait without end would not hear Ctrl-C on Windows


class Cancellable(Protocol):
    """A model whose answer can be ended from another thread: a `first_cpp.Llama`."""

    def cancel(self, thread: int | None = None) -> None: ...


class AnswerThread:
    """Runs `chunks()` in a thread and hands on ("chunk", it), and in the end ("end", None) or ("error", exception)."""

    def __init__(self, llm: Cancellable, chunks: Callable[[], Iterable[Any]], put: Callable[[tuple[str, Any]], object]) -> None:
        self._llm, self._chunks, self._put = llm, chunks, put
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="first_cpp answer", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for chunk in self._chunks():
                self._put(("chunk", chunk))
                if self._stopped.is_set():
                    return
            self._put(("end", None))
        except BaseException as error:
            self._put(("error", error))

    def stop(self) -> None:
        """Cancel the answer, unless it has ended, and wait for the thread. Answers of other threads are not concerned."""
        self._stopped.set()
        while self._thread.is_alive():
            self._llm.cancel(self._thread.ident)  # again: an answer that had not begun is not concerned
            self._thread.join(_WAIT / 10)


def in_thread(llm: Cancellable, chunks: Callable[[], Iterable[T]]) -> Iterator[T]:
    """Yield what `chunks()` yields; it runs in another thread and may use `llm`.

    Closing this generator, or KeyboardInterrupt in it, cancels the answer that `llm` is at, amid prefill too, and waits for
    the thread. What `chunks` raises is raised here.
    """
    items: queue.Queue[tuple[str, Any]] = queue.Queue()
    work = AnswerThread(llm, chunks, items.put)
    try:
        while True:
            try:
                kind, value = items.get(timeout=_WAIT)
            except queue.Empty:
                continue
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        work.stop()
