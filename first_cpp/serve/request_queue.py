"""The queue in front of the model: first come, first served, and only so many may wait."""

from __future__ import annotations

import asyncio
from collections import deque


class QueueFull(Exception):
    """As many requests are waiting as may."""


class QueueClosed(Exception):
    """The server is stopping; no waiting request is served."""


class RequestQueue:
    """A bounded queue in front of one resource. Used by one event loop.

    >>> async def scene():
    ...     queue = RequestQueue(max_waiting=1)
    ...     first, second = queue.enter(), queue.enter()
    ...     queue.leave(first)
    ...     return second.done()
    >>> asyncio.run(scene())
    True
    """

    def __init__(self, max_waiting: int) -> None:
        """max_waiting: requests that may wait, besides the one being served."""
        self.max_waiting = max_waiting
        self.closed = False
        self._turns: deque[asyncio.Future[None]] = deque()

    @property
    def busy(self) -> bool:
        """Whether a request is being served."""
        return bool(self._turns)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return max(0, len(self._turns) - 1)

    def enter(self) -> asyncio.Future[None]:
        """Take a place; the future is done when the turn has come. Call `leave` with it in any case.

        Raises QueueFull or QueueClosed; the future raises QueueClosed when the queue is closed meanwhile.
        """
        if self.closed:
            raise QueueClosed
        if len(self._turns) > self.max_waiting:
            raise QueueFull
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._turns:
            turn.set_result(None)
        self._turns.append(turn)
        return turn

    def leave(self, turn: asyncio.Future[None]) -> None:
        """Give the place up, served or not. Leaving again is fine."""
        if turn not in self._turns:
            return
        self._turns.remove(turn)
        turn.cancel()
        if self._turns and not self._turns[0].done():
            self._turns[0].set_result(None)

    def close(self) -> None:
        """Serve only the request that is being served."""
        self.closed = True
        for turn in list(self._turns)[1:]:
            self._turns.remove(turn)
            turn.set_exception(QueueClosed())
