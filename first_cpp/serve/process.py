"""The server's process: it listens, and when asked to end it finishes the running answer."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from .connections import ACCEPT_AT_ONCE, BACKLOG, MOST_HEADER_BYTES, connection_class, connection_limit
from .log import log_config
from .worker import Worker

_TICK = 0.05
_LAST_SECONDS = 5


class ServerProcess(uvicorn.Server):
    """Runs an application until SIGTERM or SIGINT; then it refuses requests, and the running answer has `grace` seconds."""

    def __init__(self, app: ASGIApp, worker: Worker, grace: float, verbose: bool, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(connection_limit()),
                lifespan="off",
                ws="none",
                backlog=ACCEPT_AT_ONCE,
                log_config=log_config(verbose),
                log_level="info" if verbose else "warning",
                timeout_graceful_shutdown=_LAST_SECONDS,
                h11_max_incomplete_event_size=MOST_HEADER_BYTES,
            )
        )
        self.signals: list[int] = []
        self._worker = worker
        self._grace = grace
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # the system's queue may be longer
        self._worker.free_later()
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server after the running answer, a second one at once."""
        self.signals.append(sig)

    async def on_tick(self, counter: int) -> bool:
        if self.signals:
            await self._finish()
            return True
        return await super().on_tick(counter)

    async def _finish(self) -> None:
        self._worker.queue.close()
        deadline = time.monotonic() + self._grace
        while self._worker.queue.busy and time.monotonic() < deadline and len(self.signals) < 2:
            await asyncio.sleep(_TICK)
        self._worker.stop_current()
        deadline, n_signals = time.monotonic() + _LAST_SECONDS, len(self.signals)
        while self._worker.queue.busy:
            if time.monotonic() > deadline or len(self.signals) > n_signals:
                _give_up()
            await asyncio.sleep(_TICK)

    @property
    def interrupted(self) -> bool:
        return signal.SIGINT in self.signals


def _give_up() -> None:
    """End the process while its worker thread does not come back; nothing is freed that the thread may still use."""
    print("error: the running answer cannot be stopped; the process ends without it", file=sys.stderr, flush=True)
    os._exit(1)
