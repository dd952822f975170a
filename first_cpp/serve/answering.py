"""The life of one answer: it waits in line, is made in the worker thread, and goes to its client as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..errors import AnswerCancelled, SkipError
from ..llama import Llama
from ..runtime.answer import Timing
from ..runtime.routing import Routing
from .api_errors import ApiError, line_full, stopping
from .line import Line, LineClosed, LineFull
from .prepare import Work
from .prometheus import Metrics

PING_SECONDS = 10.0


class ClientGone(Exception):
    """Nobody reads the answer any more."""


def layers_field(routing: Routing, timing: Timing) -> dict[str, Any]:
    """What the answer's field `first_cpp` tells. Times in milliseconds, without the wait in line."""
    return {
        "skipped_layers": list(routing.skipped),
        "n_layer": routing.n_layer,
        "keep": None if routing.keep is None else [round(keep, 4) for keep in routing.keep],
        "ttft_ms": round(timing.ttft * 1e3, 3),
        "tpot_ms": round(timing.tpot * 1e3, 3) if timing.n_tokens > 1 else None,
        "why": routing.why,
    }


class Desk:
    """The model with its worker thread and the line in front of it."""

    def __init__(self, llm: Llama, line: Line, metrics: Metrics) -> None:
        self.llm = llm
        self.line = line
        self.metrics = metrics
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="answer")
        self._current: Answering | None = None
        self._seconds = 1.0

    def join(self) -> asyncio.Future[None]:
        """Stand in line. Raises ApiError when it is full, or nobody is served any more."""
        try:
            return self.line.join()
        except LineFull:
            raise line_full(self.line.waiting, self._patience()) from None
        except LineClosed:
            raise stopping() from None

    def start(self, work: Work, turn: asyncio.Future[None]) -> Answering:
        """Begin an answer whose turn it is. The next one's turn comes when the worker thread is free again."""
        began = time.monotonic()
        answering = self._current = Answering(self.llm, work, self._worker, self.metrics)

        def free(_: object) -> None:
            self._seconds = time.monotonic() - began
            self._current = None
            self.line.leave(turn)

        answering.done.add_done_callback(free)
        return answering

    def _patience(self) -> int:
        """Seconds after which a place is likely to be free: what the last answer took."""
        return min(60, max(1, math.ceil(self._seconds)))

    def stop_current(self) -> None:
        """End the answer going on; its client is told that the server is stopping."""
        if self._current is not None:
            self._current.stop()

    def close(self) -> None:
        """End the answer going on, wait for the worker thread, free the model."""
        if self._current is not None:
            self._current.cancelled = True
        self.llm.cancel()
        self._worker.shutdown()
        self.llm.close()


class Answering:
    """One answer being made in the worker thread; the event loop takes its parts with `part`."""

    def __init__(self, llm: Llama, work: Work, worker: ThreadPoolExecutor, metrics: Metrics) -> None:
        self.cancelled = False
        self._llm = llm
        self._work = work
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[Any] = asyncio.Queue()
        self._ending: asyncio.Task[None] | None = None
        self.done = self._loop.run_in_executor(worker, self._make)

    async def part(self) -> Any:
        """The next part, a chunk of a stream or the whole answer, and None after the last. Raises what went wrong."""
        part = await self._parts.get()
        if isinstance(part, Exception):
            raise part
        return part

    def stop(self) -> None:
        """End the answer as soon as it can be."""
        if self._ending is None:
            self._ending = self._loop.create_task(self.end())

    async def end(self) -> None:
        """Return when the worker thread is free; an answer that is going on is cancelled."""
        while not self.done.done():
            self.cancelled = True
            self._llm.cancel()  # again and again: it may not have begun
            await asyncio.wait({self.done}, timeout=0.01)

    # -- in the worker thread -------------------------------------------------------------------------------------------

    def _make(self) -> None:
        before = self._llm.routing
        last: Exception | None
        try:
            for part in self._produce(before):
                self._hand_over(part)
                if self.cancelled:
                    raise AnswerCancelled("the answer was cancelled")
            last = None
        except Exception as error:
            last = error
            if isinstance(error, AnswerCancelled):
                self._metrics.cancelled()
        if self._work.routed and self._llm.routing is not before and self._llm.routing is not None:
            self._metrics.answer(self._llm.routing, self._llm.timing)
        self._hand_over(last)

    def _hand_over(self, part: Any) -> None:
        self._loop.call_soon_threadsafe(self._parts.put_nowait, part)

    def _produce(self, before: Routing | None) -> Iterator[Any]:
        if self.cancelled:
            raise AnswerCancelled("the answer was cancelled")
        if self._work.routed:
            self._llm.skip = self._work.skip
        made = self._work.make()
        if isinstance(made, dict):
            yield self._told(made, before)
            return
        with contextlib.closing(made):
            for chunk in made:
                last = chunk.get("choices") and chunk["choices"][0].get("finish_reason") is not None
                yield self._told(chunk, before) if last else chunk

    def _told(self, answer: dict[str, Any], before: Routing | None) -> dict[str, Any]:
        routing = self._llm.routing
        if routing is None or routing is before:
            return answer
        return {**answer, "first_cpp": layers_field(routing, self._llm.timing)}


class AnswerResponse(Response):
    """Answers one request: as JSON, or as a stream of server-sent events."""

    def __init__(self, desk: Desk, work: Work) -> None:
        super().__init__()
        self._desk = desk
        self._work = work
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
        turn = self._desk.join()
        try:
            await self._wait(turn, gone, send)
        except BaseException:
            self._desk.line.leave(turn)
            raise
        self._desk.metrics.waited(time.monotonic() - asked)
        answering = self._desk.start(self._work, turn)
        try:
            if self._work.stream:
                await self._stream(answering, gone, send)
            else:
                answer = await self._wait(asyncio.ensure_future(answering.part()), gone, send)
                await answering.part()  # None: by then it is counted
                await _Json(answer)(scope, receive, send)
        finally:
            await answering.end()

    async def _stream(self, answering: Answering, gone: asyncio.Future[None], send: Send) -> None:
        while (chunk := await self._wait(asyncio.ensure_future(answering.part()), gone, send)) is not None:
            await self._event(send, f"data: {_json(chunk)}\n\n")
        await self._event(send, "data: [DONE]\n\n", more=False)

    async def _wait(self, awaited: asyncio.Future[Any], gone: asyncio.Future[None], send: Send) -> Any:
        """The result of `awaited`. Raises ClientGone; a stream whose client waits long is kept alive meanwhile."""
        while True:
            done, _ = await asyncio.wait({awaited, gone}, timeout=PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if awaited in done:
                return awaited.result()
            if done:
                awaited.cancel()
                raise ClientGone
            if self._work.stream:
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
    """What a client is told of an error while its answer was made."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, (AnswerCancelled, LineClosed)):
        return stopping()
    if isinstance(error, SkipError):
        return ApiError(400, str(error), "invalid_skip", "skip")
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    traceback.print_exception(error, file=sys.stderr)
    return ApiError(500, f"the answer failed: {type(error).__name__}; the server's log tells more")


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(value: Any) -> str:
    # default: numpy's floats, of which llama_cpp makes logprobs
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=float)


class _Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return _json(content).encode()
