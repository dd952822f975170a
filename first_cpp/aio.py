"""`AsyncLlama`: a Llama for asyncio. Answers are made in a thread; cancelling the task ends them within a token."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from types import EllipsisType
from typing import Any, TypeVar

from .llama import Llama
from .runtime.answer import Timing
from .runtime.idle_thread import IdleThread
from .runtime.routing import Routing
from .runtime.streaming import AnswerThread
from .skip import Skip, SkipSetting

T = TypeVar("T")


class AsyncLlama:
    """A `first_cpp.Llama` whose answers are awaited: `await llm.create_chat_completion(...)`, `async for` with stream=True.

    Takes the arguments of `Llama`, or `llama=` for one that is loaded. Calls wait for each other, in order. A task that is
    cancelled ends its answer within a token, amid prefill within a graph node, and the next call finds the model ready. Close
    an iterator that is left early (`contextlib.aclosing`), or the model stays taken until it is collected.

    catch_up: while nothing is awaited, run `Llama.catch_up`; a call that comes meanwhile ends it at once.

    >>> async def ask():
    ...     async with AsyncLlama("model.gguf", verbose=False) as llm:
    ...         answer = await llm.create_completion("Hello", max_tokens=2, temperature=0)
    ...         return answer["usage"]["completion_tokens"]
    >>> asyncio.run(ask())
    2
    """

    def __init__(self, *args: Any, llama: Llama | None = None, catch_up: bool = False, **kwargs: Any) -> None:
        self.llama = Llama(*args, **kwargs) if llama is None else llama
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()
        self._awaited = 0
        self._idle = IdleThread(self.llama) if catch_up else None

    @property
    def skip(self) -> Skip:
        """As `Llama.skip`; a change takes effect with the next prompt. Every call takes a `skip=` of its own too."""
        return self.llama.skip

    @skip.setter
    def skip(self, value: SkipSetting) -> None:
        self.llama.skip = value

    @property
    def routing(self) -> Routing | None:
        """As `Llama.routing`: what the last prompt decided, None before the first."""
        return self.llama.routing

    @property
    def timing(self) -> Timing | None:
        """As `Llama.timing`: how long the last answer took, or takes; None before the first."""
        return self.llama.timing

    def cancel(self) -> None:
        """End the answer that is going on, as `Llama.cancel` does: whoever awaits it gets AnswerCancelled."""
        self.llama.cancel()

    def __repr__(self) -> str:
        return f"<AsyncLlama of {self.llama!r}>"

    async def create_completion(
        self, *args: Any, stream: bool = False, skip: SkipSetting | EllipsisType = ..., **kwargs: Any
    ) -> Any:
        """As `Llama.create_completion`; with stream=True an async iterator of chunks. skip: for this answer alone."""
        return await self._create(self.llama.create_completion, *args, stream=stream, skip=skip, **kwargs)

    __call__ = create_completion

    async def create_chat_completion(
        self, *args: Any, stream: bool = False, skip: SkipSetting | EllipsisType = ..., **kwargs: Any
    ) -> Any:
        """As `Llama.create_chat_completion`; with stream=True an async iterator of chunks. skip: for this answer alone."""
        return await self._create(self.llama.create_chat_completion, *args, stream=stream, skip=skip, **kwargs)

    async def generate(self, tokens: list[int], *, skip: SkipSetting | EllipsisType = ..., **kwargs: Any) -> AsyncIterator[int]:
        """As `Llama.generate`, an async iterator of tokens. skip: for this answer alone."""
        async for token in self._stream(lambda: self.llama.generate(tokens, skip=skip, **kwargs)):
            yield token

    async def create_embedding(self, *args: Any, **kwargs: Any) -> Any:
        """As `Llama.create_embedding`. It cannot be cancelled midway."""
        async with self._taken():
            return await _to_the_end(functools.partial(self.llama.create_embedding, *args, **kwargs))

    async def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As `Llama.embed`. It cannot be cancelled midway."""
        async with self._taken():
            return await _to_the_end(functools.partial(self.llama.embed, *args, **kwargs))

    async def close(self) -> None:
        """Free the model, after the answer that is going on."""
        async with self._taken(closing=True):
            await _to_the_end(self.llama.close)

    async def __aenter__(self) -> AsyncLlama:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def _taken(self, closing: bool = False) -> AsyncIterator[None]:
        """The model is free inside; afterwards, where nothing else is awaited, it catches up."""
        self._awaited += 1
        try:
            # a lock is of one event loop, and programs run several, one after the other
            async with self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
                if self._idle is not None:
                    await _to_the_end(self._idle.pause)
                yield
        finally:
            self._awaited -= 1
            if self._idle is not None and not closing and not self._awaited:
                self._idle.begin()

    async def _create(self, call: Callable[..., Any], *args: Any, stream: bool, **kwargs: Any) -> Any:
        if stream:
            return self._stream(lambda: call(*args, stream=True, **kwargs))
        found = None
        async for whole in self._stream(lambda: [call(*args, stream=False, **kwargs)]):
            found = whole
        return found

    async def _stream(self, chunks: Callable[[], Iterable[T]]) -> AsyncIterator[T]:
        async with self._taken():
            loop = asyncio.get_running_loop()
            arrived: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
            work = AnswerThread(self.llama, chunks, lambda item: loop.call_soon_threadsafe(arrived.put_nowait, item))
            try:
                while True:
                    kind, value = await arrived.get()
                    if kind == "end":
                        return
                    if kind == "error":
                        raise value
                    yield value
            finally:
                await _to_the_end(work.stop)


async def _to_the_end(call: Callable[[], T]) -> T:
    """Run `call` in a thread and wait for it, also when the task is cancelled meanwhile: the thread has the model."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    cancelled = None
    while not running.done():
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return running.result()
