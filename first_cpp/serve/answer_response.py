"""The response to one request: it waits for its turn, runs its job, and sends the answer as it comes."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..errors import AnswerCancelled, SkipError
from .api_errors import ApiError, stopping
from .log import LOG
from .prepare import Order
from .request_queue import QueueClosed
from .worker import RunningJob, Worker

PING_SECONDS = 10.0


class ClientGone(Exception):
    """The client has closed its connection."""


class AnswerResponse(Response):
    """Answers one request: as JSON, or as a stream of server-sent events."""

    def __init__(self, worker: Worker, order: Order) -> None:
        super().__init__()
        self._worker = worker
        self._order = order
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_until_disconnect(receive))
        try:
            await self._answer(scope, receive, send, gone)
        except ClientGone:
            pass
        except Exception as error:
            await self._fail(as_api_error(error), scope, receive, send)
        finally:
            gone.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send, gone: asyncio.Future[None]) -> None:
        asked = time.monotonic()
        turn = self._worker.enter_queue()
        try:
            await self._wait(turn, gone, send)
        except BaseException:
            self._worker.queue.leave(turn)
            raise
        self._worker.metrics.waited(time.monotonic() - asked)
        running = self._worker.start(self._order, turn)
        try:
            if self._order.stream:
                await self._stream(running, gone, send)
            else:
                answer = await self._wait(asyncio.ensure_future(running.part()), gone, send)
                await running.part()  # None: by then it is counted
                await _Json(answer)(scope, receive, send)
        finally:
            await running.end()

    async def _stream(self, running: RunningJob, gone: asyncio.Future[None], send: Send) -> None:
        named = False
        while (chunk := await self._wait(asyncio.ensure_future(running.part()), gone, send)) is not None:
            named = "sequence_number" in chunk  # /v1/responses names its events, and has no mark of the end
            name = f"event: {chunk['type']}\n" if named else ""
            await self._event(send, f"{name}data: {_json(chunk)}\n\n")
        await self._event(send, "" if named else "data: [DONE]\n\n", more=False)

    async def _wait(self, awaited: asyncio.Future[Any], gone: asyncio.Future[None], send: Send) -> Any:
        """The result of `awaited`. Raises ClientGone; meanwhile a stream is kept alive by comments."""
        while True:
            done, _ = await asyncio.wait({awaited, gone}, timeout=PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if awaited in done:
                return awaited.result()
            if done:
                awaited.cancel()
                raise ClientGone
            if self._order.stream:
                await self._event(send, ": still at work\n\n")

    async def _event(self, send: Send, text: str, more: bool = True) -> None:
        if not self._started:
            self._started = True
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

    async def _fail(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        if self._started:  # too late for a status
            await self._event(send, f"data: {_json(error.body)}\n\n", more=False)
        else:
            await error.response()(scope, receive, send)


def as_api_error(error: Exception) -> ApiError:
    """The error that a client gets for an exception while its answer was generated."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, (AnswerCancelled, QueueClosed)):
        return stopping()
    if isinstance(error, SkipError):
        return ApiError(400, str(error), "invalid_skip", "skip")
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    LOG.error("an answer failed", exc_info=error)
    return ApiError(500, f"the answer failed: {type(error).__name__}; the server's log has more")


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(value: Any) -> str:
    # default: numpy's floats, of which llama_cpp makes logprobs
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=float)


class _Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return _json(content).encode()
