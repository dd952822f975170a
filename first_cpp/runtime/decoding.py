"""One answer: prefill, the decision, decoding without the skipped layers, and how it is ended."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from typing import Any

import llama_cpp

from ..errors import ContextFull
from .answer import Answer, ContextEnd, CurrentAnswer, Timing
from .context import ReadContext
from .conversations import Conversations
from .fidelity import AnswerMeasure
from .guarded import GuardedLlama
from .policy import RoutingPolicy
from .routing import Routing

_BASE_GENERATE = inspect.signature(llama_cpp.Llama.generate)


class DecodingLlama(GuardedLlama):
    """The base of `first_cpp.Llama`, which makes the objects that this one goes by."""

    _current: CurrentAnswer
    _read: ReadContext
    _policy: RoutingPolicy
    _measure: AnswerMeasure
    _routing: Routing | None
    _conversations: Conversations | None

    @property
    def timing(self) -> Timing:
        """How long the last answer took, or takes."""
        return self._current.last.timing

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """Yield the tokens that answer a prompt; arguments as in `llama_cpp.Llama.generate`.

        Raises BusyError when it is resumed after a newer prompt was started on this model, AnswerCancelled after `cancel`.

        >>> from first_cpp import Llama
        >>> llm = Llama("model-first.gguf", verbose=False)
        >>> answer = llm.generate(llm.tokenize(b"Hello"), temp=0.0)
        >>> tokens = [next(answer) for _ in range(3)]
        """
        given = _BASE_GENERATE.bind(self, tokens, *args, **kwargs).arguments
        given.pop("self")
        reset, end = given.get("reset", True), given.get("stopping_criteria")
        answer = Answer()
        if isinstance(end, ContextEnd):
            given["stopping_criteria"] = end.further
        with self._exclusive:
            if not len(tokens) and (reset or self.n_tokens == 0):
                raise ValueError("the prompt has no tokens")
            self._policy.begin_answer(self._measure.fidelity)
            if reset and self._conversations is not None:
                self._read.sync()
                self._conversations.switch(list(tokens))
            given["tokens"] = self._drop_unusable(list(tokens), reset)
            self._measure.clear()
            self._current.begin(answer)  # last: a prompt that is refused begins no answer
        inner = super().generate(**given)
        try:
            yield from self._current.steps(inner, answer, self._exclusive, end if isinstance(end, ContextEnd) else None)
        finally:
            inner.close()
            self._current.end(answer)

    def cancel(self, thread: int | None = None) -> None:
        """End the answer that is going on, from any thread: `generate` raises AnswerCancelled, also amid prefill.

        It ends `catch_up` too. Without either it does nothing. The model stays usable, and the next answer is not concerned.
        thread: end only what the thread of this `threading.get_ident()` began.

        >>> from first_cpp import Llama
        >>> Llama("model.gguf", verbose=False).cancel()
        """
        self._current.cancel(thread)
        self._exclusive.interrupt(thread)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after those already there: as prompt, as answer, or dense when called by itself.

        Raises ContextFull, and changes nothing, where the context has no room for them.
        """
        with self._exclusive:
            if (asked := self.n_tokens + len(tokens)) > self._n_ctx:
                raise ContextFull(
                    f"Requested tokens ({asked}) exceed context window of {self._n_ctx}; a larger n_ctx= has room"
                )
            answer, read, policy = self._current.answer, self._read, self._policy
            if answer is not None and answer.skipped is not None and policy.forced is None:
                if self.n_tokens == read.kv.end:  # the per-token path: nothing was changed behind our back
                    read.run(tokens, answer.skipped)
                else:
                    read.evaluate(tokens, answer.skipped)
                if answer.skipped:
                    self._measure.record(self.n_tokens, len(tokens))
            elif answer is None or answer.skipped is not None:
                read.evaluate(tokens, policy.forced_set, score=answer is None and policy.scoring)
            else:
                self._read_prompt(answer, tokens)

    def _read_prompt(self, answer: Answer, tokens: Sequence[int]) -> None:
        """Prefill and decision: all layers on every position that decides, with prefill="routed" fewer on the rest."""
        read, policy = self._read, self._policy
        read.sync()
        end = self.n_tokens + len(tokens)
        whole = policy.forced is not None or read.n_image > 0
        deciding = len(tokens) if whole else max(0, policy.route_tokens - self.n_tokens)
        if deciding:
            read.evaluate(tokens[:deciding], policy.forced_set, policy.scoring)
        self._routing = policy.decide(self.n_tokens, end)
        answer.skipped = frozenset(self._routing.skipped)
        if rest := tokens[deciding:]:
            read.evaluate(rest, answer.skipped)

    def _drop_unusable(self, tokens: list[int], reset: bool) -> list[int]:
        """Rewind to the prefix that a fresh model would have evaluated the same way; returns the tokens to evaluate."""
        self._read.sync()
        usable = self._policy.usable_prefix()
        pending, self._read.pending = self._read.pending, []
        if reset:
            self._read.new_prompt(tokens)
        dropped = self._read.rewind(usable)
        return tokens if reset else dropped + pending + tokens

    def reset(self) -> None:
        """As in the base class; an answer that was going on ends."""
        with self._exclusive:
            super().reset()
            answer = self._current.answer
            if answer is not None and answer.skipped is not None:
                self._current.end()  # an answer that is decoding ends here; one that has not begun is resetting itself
            self._read.pending = []
            self._read.sync()
