"""The model with its one worker thread and the queue in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..cli.answer_record import AnswerRecorder
from ..errors import AnswerCancelled
from ..llama import Llama
from ..runtime.answer import Timing
from ..runtime.routing import Routing
from .api_errors import queue_full, stopping
from .idle import IdleReader
from .prepare import Job
from .prometheus import Metrics
from .request_queue import QueueClosed, QueueFull, RequestQueue

T = TypeVar("T")


class Worker:
    """Runs one job at a time in its thread; further requests wait in `queue`.

    Requests are prepared in another thread: the event loop reads no text and renders no template.
    """

    def __init__(self, llm: Llama, queue: RequestQueue, metrics: Metrics, recorder: AnswerRecorder, idle: IdleReader) -> None:
        self.llm = llm
        self.idle = idle
        self.queue = queue
        self.metrics = metrics
        self._recorder = recorder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="answer")
        self._preparing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._current: RunningJob | None = None
        self._last_seconds = 1.0

    async def prepare(self, function: Callable[[bytes], T], body: bytes) -> T:
        """What `function` makes of a request's body. Raises what it raises, and ApiError once the server is stopping."""
        if self.queue.closed:
            raise stopping()
        return await asyncio.get_running_loop().run_in_executor(self._preparing, function, body)

    def enter_queue(self) -> asyncio.Future[None]:
        """A place in the queue. Raises ApiError when it is full, or closed."""
        try:
            return self.queue.enter()
        except QueueFull:
            raise queue_full(self.queue.waiting, self._retry_after()) from None
        except QueueClosed:
            raise stopping() from None

    def start(self, job: Job, turn: asyncio.Future[None]) -> RunningJob:
        """Start a job whose turn it is. The next turn comes when the thread is free again."""
        began = time.monotonic()
        running = self._current = RunningJob(self, job, self._thread, self._recorder)

        def free(_: object) -> None:
            self._last_seconds = time.monotonic() - began
            self._current = None
            self.queue.leave(turn)
            if running.answer_id is not None and not self.queue.busy and not self.queue.closed:
                self.idle.begin(running.answer_id)

        running.done.add_done_callback(free)
        return running

    def _retry_after(self) -> int:
        """Seconds after which a place is likely to be free: what the last job took."""
        return min(60, max(1, math.ceil(self._last_seconds)))

    def stop_current(self) -> None:
        """End the running job; its client gets the error that the server is stopping."""
        if self._current is not None:
            self._current.stop()

    def close(self) -> None:
        """End the running job, wait for all threads, free the model: nothing is freed that a thread may still use."""
        self._preparing.shutdown(cancel_futures=True)
        if self._current is not None:
            self._current.cancelled = True
        self.llm.cancel()
        self._thread.shutdown()
        self.idle.pause()
        self.llm.close()


class RunningJob:
    """A job in the worker thread; the event loop takes the parts of its answer with `part`."""

    def __init__(self, worker: Worker, job: Job, thread: ThreadPoolExecutor, recorder: AnswerRecorder) -> None:
        self.cancelled = False
        self.answer_id: str | None = None
        """Of the answer, once there is a part of it; None for what the routers did not decide."""
        self._worker, self._llm, self._metrics = worker, worker.llm, worker.metrics
        self._job = job
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[Any] = asyncio.Queue()
        self._ending: asyncio.Task[None] | None = None
        self.done = self._loop.run_in_executor(thread, self._run)

    async def part(self) -> Any:
        """The next part, a chunk of a stream or the whole answer, and None after the last. Raises what went wrong."""
        part = await self._parts.get()
        if isinstance(part, Exception):
            raise part
        return part

    def stop(self) -> None:
        """End the job as soon as it can be."""
        if self._ending is None:
            self._ending = self._loop.create_task(self.end())

    async def end(self) -> None:
        """Cancel the job, if it still runs, and return when the thread is free."""
        while not self.done.done():
            self.cancelled = True
            self._llm.cancel()  # repeatedly: the answer may not have started
            await asyncio.wait({self.done}, timeout=0.01)

    # -- in the worker thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._worker.idle.pause()
        before = self._llm.routing
        last: Exception | None
        try:
            for part in self._produce(before):
                if part is not None:
                    self._hand_over(part)
                if self.cancelled:
                    raise AnswerCancelled("the answer was cancelled")
            last = None
        except Exception as error:
            last = error
            if isinstance(error, AnswerCancelled):
                self._metrics.cancelled()
        if self._job.routed and self._llm.routing is not before and self._llm.routing is not None:
            self._metrics.answer(self._llm.routing, self._llm.timing or Timing())
        self._hand_over(last)

    def _hand_over(self, part: Any) -> None:
        self._loop.call_soon_threadsafe(self._parts.put_nowait, part)

    def _produce(self, before: Routing | None) -> Iterator[Any]:
        if self.cancelled:
            raise AnswerCancelled("the answer was cancelled")
        if self._job.routed:
            self._llm.skip = self._job.skip
            self._llm.tolerance = self._job.tolerance
        made = self._job.make()
        if isinstance(made, dict):
            self._note(made)
            yield self._with_record(made, before)
            return
        with contextlib.closing(made):
            for chunk in made:
                if chunk is None:  # work goes on, and nothing is to be sent yet
                    yield None
                    continue
                self._note(chunk)
                last = chunk.get("choices") and chunk["choices"][0].get("finish_reason") is not None
                yield self._with_record(chunk, before) if last else chunk

    def _note(self, part: dict[str, Any]) -> None:
        if self._job.routed:
            self.answer_id = str(part.get("id", ""))

    def _with_record(self, answer: dict[str, Any], before: Routing | None) -> dict[str, Any]:
        record = self._recorder.record()
        if record is None or self._llm.routing is before:
            return answer
        return {**answer, "first_cpp": record.as_json()}
