"""Connections of clients: so many at a time, and each must send a request within a time, or it makes room for others."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 15.0  # within which the headers of a request must have come
MOST_CONNECTIONS = 1000
_OTHER_FILES = 64  # descriptors that are no connections, or not yet
ACCEPT_AT_ONCE = 8  # asyncio accepts so many before it hears of one, and does not stop where descriptors run out
BACKLOG = 2048
MOST_HEADER_BYTES = 32 * 1024


def connection_limit() -> int:
    """How many connections are kept open; raises the process's limit of open files as far as it may for that.

    >>> 0 < connection_limit() <= MOST_CONNECTIONS
    True
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MOST_CONNECTIONS + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MOST_CONNECTIONS, soft - _OTHER_FILES))


class BoundedConnection(H11Protocol):
    """uvicorn's connection, closed where no request comes, and where a newer one needs its place."""

    limit = MOST_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._idle_since = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        if len(self.connections) > self.limit:
            idle = [one for one in self.connections if isinstance(one, BoundedConnection) and one.idle]
            longest = min(idle, key=lambda one: one.idle_since)  # this one is idle, so there is one
            longest.transport.abort()
            self.connections.discard(longest)
        self._wait_for_request()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    @property
    def idle_since(self) -> float:
        return self._idle_since

    def _wait_for_request(self) -> None:
        self._idle_since = self.loop.time()
        self._stop_waiting()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._no_request)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _no_request(self) -> None:
        if self.idle and not self.transport.is_closing():
            self.transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        if not self.idle:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._wait_for_request()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)


def connection_class(limit: int) -> type[Any]:
    """The class of connections of a server that keeps at most `limit` of them open."""
    return type("Connection", (BoundedConnection,), {"limit": limit})
