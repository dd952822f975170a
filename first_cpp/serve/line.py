"""The line in front of the model: who came first is served first, and only so many may wait."""

from __future__ import annotations

import asyncio
from collections import deque


class LineFull(Exception):
    """As many are waiting as may."""


class LineClosed(Exception):
    """Nobody is served any more."""


class Line:
    """A bounded queue in front of one resource. Used by one event loop."""

    def __init__(self, places: int) -> None:
        """places: how many may wait, besides the one being served."""
        self.places = places
        self.closed = False
        self._turns: deque[asyncio.Future[None]] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._turns)

    @property
    def waiting(self) -> int:
        return max(0, len(self._turns) - 1)

    def join(self) -> asyncio.Future[None]:
        """Stand in line; the future is done when it is one's turn. `leave` with it in any case.

        Raises LineFull or LineClosed; so does the future when the line is closed meanwhile.
        """
        if self.closed:
            raise LineClosed
        if len(self._turns) > self.places:
            raise LineFull
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._turns:
            turn.set_result(None)
        self._turns.append(turn)
        return turn

    def leave(self, turn: asyncio.Future[None]) -> None:
        """Served, or not willing to wait any longer. Leaving again is fine."""
        if turn not in self._turns:
            return
        self._turns.remove(turn)
        turn.cancel()
        if self._turns and not self._turns[0].done():
            self._turns[0].set_result(None)

    def close(self) -> None:
        """Serve nobody but the one being served."""
        self.closed = True
        for turn in list(self._turns)[1:]:
            self._turns.remove(turn)
            turn.set_exception(LineClosed())
