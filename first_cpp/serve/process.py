"""The server's process: it listens, and when asked to end it finishes what is being answered."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from .answering import Desk

_TICK = 0.05
_LAST_WORDS_SECONDS = 5


class Process(uvicorn.Server):
    """Runs an application until SIGTERM or SIGINT: new requests are refused then, the answer going on has `grace` seconds."""

    def __init__(self, app: ASGIApp, desk: Desk, grace: float, verbose: bool, ready: Callable[[], None]) -> None:
        level = "info" if verbose else "warning"
        super().__init__(
            uvicorn.Config(app, lifespan="off", ws="none", log_level=level, timeout_graceful_shutdown=_LAST_WORDS_SECONDS)
        )
        self.signals: list[int] = []
        self._desk = desk
        self._grace = grace
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server after the answer going on, a second one at once."""
        self.signals.append(sig)

    async def on_tick(self, counter: int) -> bool:
        if self.signals:
            await self._finish()
            return True
        return await super().on_tick(counter)

    async def _finish(self) -> None:
        self._desk.line.close()
        deadline = time.monotonic() + self._grace
        while self._desk.line.busy and time.monotonic() < deadline and len(self.signals) < 2:
            await asyncio.sleep(_TICK)
        self._desk.stop_current()
        while self._desk.line.busy:
            await asyncio.sleep(_TICK)

    @property
    def interrupted(self) -> bool:
        return signal.SIGINT in self.signals


def listen_on(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not listening yet. Raises OSError that names the address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return bound
