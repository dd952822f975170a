"""Calls that take a `skip` of their own, for one answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from types import EllipsisType
from typing import Any, TypeVar

import llama_cpp

from ..skip import Skip, SkipSetting
from .decoding import DecodingLlama

F = TypeVar("F", bound=Callable[..., Any])
_SKIP_HELP = "\n\nskip: which layers this answer skips, as in the constructor; by default `Llama.skip`. Raises SkipError."


def _documented_as(base: Callable[..., Any]) -> Callable[[F], F]:
    """The help and the signature of the base class's method, and `skip`."""

    def document(method: F) -> F:
        own = inspect.Parameter("skip", inspect.Parameter.KEYWORD_ONLY, default=..., annotation=SkipSetting)
        signature = inspect.signature(base)
        method.__doc__ = method.__doc__ or inspect.cleandoc(base.__doc__ or "") + _SKIP_HELP
        method.__signature__ = signature.replace(parameters=[*signature.parameters.values(), own])  # type: ignore[attr-defined]
        return method

    return document


class PerCallLlama(DecodingLlama):
    """The base of `first_cpp.Llama`: what answers takes `skip=`, and leaves `Llama.skip` as it is.

    The setting holds while a step of the answer is made, so nothing is to be restored where a stream is abandoned.
    """

    @_documented_as(llama_cpp.Llama.create_completion)
    def create_completion(self, *args: Any, skip: SkipSetting | EllipsisType = ..., **kwargs: Any) -> Any:
        return self._call(skip, super().create_completion, *args, **kwargs)

    @_documented_as(llama_cpp.Llama.__call__)
    def __call__(self, *args: Any, skip: SkipSetting | EllipsisType = ..., **kwargs: Any) -> Any:
        return self._call(skip, super().__call__, *args, **kwargs)

    @_documented_as(llama_cpp.Llama.create_chat_completion)
    def create_chat_completion(self, *args: Any, skip: SkipSetting | EllipsisType = ..., **kwargs: Any) -> Any:
        """As in the base class; answers keep to the whole JSON schema of `response_format` and of a tool that is chosen.

        `response_format` may be OpenAI's {"type": "json_schema", ...} too. skip: which layers this answer skips, as in the
        constructor; by default what `Llama.skip` says. Raises GrammarError for schemas that cannot be held, SettingError for
        messages of another shape, SkipError for layers that cannot be skipped.
        """
        return self._call(skip, super().create_chat_completion, *args, **kwargs)

    @_documented_as(llama_cpp.Llama.generate)
    def generate(
        self, tokens: Sequence[int], *args: Any, skip: SkipSetting | EllipsisType = ..., **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yield the tokens that answer a prompt; arguments as in `llama_cpp.Llama.generate`, and `skip` for this answer alone.

        Raises BusyError when it is resumed after a newer prompt was started on this model, AnswerCancelled after `cancel`,
        SkipError for layers that cannot be skipped.

        >>> from first_cpp import Llama
        >>> llm = Llama("model-first.gguf", verbose=False)
        >>> answer = llm.generate(llm.tokenize(b"Hello"), temp=0.0, skip=[2, 3])
        >>> tokens = [next(answer) for _ in range(3)]
        >>> llm.routing.skipped, llm.skip
        ((2, 3), 'auto')
        """
        steps = super().generate(tokens, *args, **kwargs)
        return steps if skip is ... else self._steps(self._policy.check_skip(skip), steps)

    def _call(self, skip: SkipSetting | EllipsisType, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """An answer, or the iterator of a streamed one."""
        if skip is ...:
            return call(*args, **kwargs)
        asked = self._policy.check_skip(skip)
        with self._exclusive, self._policy.asking(asked):
            made = call(*args, **kwargs)
        return self._steps(asked, made) if isinstance(made, Iterator) else made

    def _steps(self, skip: Skip, made: Iterator[Any]) -> Generator[Any, Any, None]:
        """`made`, each of its steps by this setting."""
        sent = None
        try:
            while True:
                with self._exclusive, self._policy.asking(skip):
                    try:
                        step = next(made) if sent is None else made.send(sent)  # type: ignore[attr-defined]
                    except StopIteration:
                        return
                sent = yield step
        finally:
            if hasattr(made, "close"):
                made.close()
