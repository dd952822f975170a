"""The models with their one worker thread and the queue in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..errors import AnswerCancelled
from ..runtime.answer import Timing
from ..runtime.routing import Routing
from .api_errors import queue_full, stopping
from .hosted_models import HostedModels, LoadedModel
from .prepare import Job, Order
from .prometheus import Metrics
from .request_queue import QueueClosed, QueueFull, RequestQueue
from .response_events import LAST_EVENTS

T = TypeVar("T")


class Worker:
    """Runs one job at a time in its thread, which also loads and frees models; further requests wait in `queue`.

    Requests are prepared in another thread: the event loop reads no text and renders no template. keep_alive: seconds without a
    request after which the loaded model is freed; None: never.
    """

    def __init__(self, models: HostedModels, queue: RequestQueue, metrics: Metrics, keep_alive: float | None = None) -> None:
        self.models = models
        self.queue = queue
        self.metrics = metrics
        self._keep_alive = keep_alive
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="answer")
        self._preparing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._current: RunningJob | None = None
        self._last_seconds = 1.0
        self._freeing: asyncio.TimerHandle | None = None

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

    def start(self, order: Order, turn: asyncio.Future[None]) -> RunningJob:
        """Start an order whose turn it is. The next turn comes when the thread is free again."""
        began = time.monotonic()
        self._stay_loaded()
        running = self._current = RunningJob(self, order, self._thread)

        def free(_: object) -> None:
            self._last_seconds = time.monotonic() - began
            self._current = None
            self.queue.leave(turn)
            if not self.queue.busy and not self.queue.closed:
                running.begin_idle_pass()
                self.free_later()

        running.done.add_done_callback(free)
        return running

    def _retry_after(self) -> int:
        """Seconds after which a place is likely to be free: what the last job took."""
        return min(60, max(1, math.ceil(self._last_seconds)))

    def free_later(self) -> None:
        """Nobody asks any more: free the model after a while, where it is to be freed."""
        if self._keep_alive is not None:
            self._stay_loaded()
            self._freeing = asyncio.get_running_loop().call_later(self._keep_alive, self._thread.submit, self.models.free)

    def _stay_loaded(self) -> None:
        if self._freeing is not None:
            self._freeing.cancel()
            self._freeing = None

    def stop_current(self) -> None:
        """End the running job; its client gets the error that the server is stopping."""
        if self._current is not None:
            self._current.stop()

    def close(self) -> None:
        """End the running job, wait for all threads, free the model: nothing is freed that a thread may still use."""
        self._stay_loaded()
        self._preparing.shutdown(cancel_futures=True)
        if self._current is not None:
            self._current.cancelled = True
        self.models.cancel()
        self._thread.shutdown()
        self.models.free()


class RunningJob:
    """A job in the worker thread; the event loop takes the parts of its answer with `part`."""

    def __init__(self, worker: Worker, order: Order, thread: ThreadPoolExecutor) -> None:
        self.cancelled = False
        self._answer_id: str | None = None
        """Of the answer, once there is a part of it; None for what the routers did not decide."""
        self._models, self._metrics = worker.models, worker.metrics
        self._model: LoadedModel | None = None
        self._order = order
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

    def begin_idle_pass(self) -> None:
        """The job is done and no request waits: read its answer again, where there is one."""
        if self._answer_id is not None and self._model is not None:
            self._model.idle.begin(self._answer_id)

    def stop(self) -> None:
        """End the job as soon as it can be."""
        if self._ending is None:
            self._ending = self._loop.create_task(self.end())

    async def end(self) -> None:
        """Cancel the job, if it still runs, and return when the thread is free."""
        while not self.done.done():
            self.cancelled = True
            if self._model is not None:
                self._model.llm.cancel()  # repeatedly: the answer may not have started
            await asyncio.wait({self.done}, timeout=0.01)

    # -- in the worker thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        last: Exception | None = None
        try:
            self._check_cancelled()
            model = self._model = self._models.take(self._order.model)
            model.idle.pause()
            self._answer(model, self._order.job_for(model.served))
        except Exception as error:
            last = error
            if isinstance(error, AnswerCancelled):
                self._metrics.cancelled()
        self._hand_over(last)

    def _answer(self, model: LoadedModel, job: Job) -> None:
        llm, before = model.llm, model.llm.routing
        try:
            for part in self._produce(model, job, before):
                if part is not None:
                    self._hand_over(part)
                self._check_cancelled()
        finally:
            if job.routed and llm.routing is not before and llm.routing is not None:
                self._metrics.answer(llm.routing, llm.timing or Timing())

    def _check_cancelled(self) -> None:
        if self.cancelled:
            raise AnswerCancelled("the answer was cancelled")

    def _hand_over(self, part: Any) -> None:
        self._loop.call_soon_threadsafe(self._parts.put_nowait, part)

    def _produce(self, model: LoadedModel, job: Job, before: Routing | None) -> Iterator[Any]:
        self._check_cancelled()
        if job.routed:
            model.llm.skip = job.skip
            model.llm.tolerance = job.tolerance
        made = job.make()
        if isinstance(made, dict):
            self._note(made, job)
            yield self._with_record(made, model, before)
            return
        with contextlib.closing(made):
            for chunk in made:
                if chunk is None:  # work goes on, and nothing is to be sent yet
                    yield None
                    continue
                self._note(chunk, job)
                last = chunk.get("choices") and chunk["choices"][0].get("finish_reason") is not None
                if chunk.get("type") in LAST_EVENTS:
                    yield {**chunk, "response": self._with_record(chunk["response"], model, before)}
                else:
                    yield self._with_record(chunk, model, before) if last else chunk

    def _note(self, part: dict[str, Any], job: Job) -> None:
        if job.routed and (answer_id := part.get("id") or part.get("response", {}).get("id")):
            self._answer_id = str(answer_id)

    def _with_record(self, answer: dict[str, Any], model: LoadedModel, before: Routing | None) -> dict[str, Any]:
        record = model.recorder.record()
        if record is None or model.llm.routing is before:
            return answer
        return {**answer, "first_cpp": record.as_json()}
