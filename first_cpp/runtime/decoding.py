"""One answer: prefill, the decision, decoding without the skipped layers, and how it is ended."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from typing import Any

import llama_cpp
import numpy as np

from ..errors import ContextFull
from ..gguf.readable_name import readable_name
from .answer import Answer, ContextEnd, CurrentAnswer, Timing
from .context import ReadContext
from .conversations import Conversations, common_prefix
from .fidelity import AnswerMeasure
from .guarded import GuardedLlama
from .notebook import notes
from .one_thread import CLOSED
from .policy import RoutingPolicy
from .probe import check_answers
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
    def timing(self) -> Timing | None:
        """How long the last answer took, or takes; None before the first."""
        return None if self._current.last is None else self._current.last.timing

    @property
    def prompt_progress(self) -> tuple[int, int] | None:
        """While a prompt is read: its tokens that have been read, and all of them; None otherwise. For any thread.

        >>> from first_cpp import Llama
        >>> Llama("model.gguf", verbose=False).prompt_progress is None
        True
        """
        answer = self._current.answer
        if answer is None or answer.skipped is not None:
            return None
        return min(self.n_tokens, answer.n_prompt), answer.n_prompt

    def _describe(self) -> list[str]:
        if not hasattr(self, "_policy"):
            return ["not loaded"]
        name = readable_name(self.metadata, self.model_path)
        return [name, "closed"] if self._model is CLOSED else [name, *self._policy.describe()]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(self._describe())}>"

    def _repr_html_(self) -> str:
        """For notebooks: the model, and the layers of its last answer."""
        name, *words = self._describe()
        return notes(words, heading=name) + (self._last_answer_html() if words else "")

    def _last_answer_html(self) -> str:
        if self._routing is None or self.timing is None:
            return notes(["no prompt was read yet"])
        return self._routing.as_html() + notes([self.timing.line()])

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """The tokens that answer a prompt; `first_cpp.Llama.generate` says more."""
        given = _BASE_GENERATE.bind(self, tokens, *args, **kwargs).arguments
        given.pop("self")
        reset, end = given.get("reset", True), given.get("stopping_criteria")
        answer = Answer(len(tokens) if reset else self.n_tokens + len(tokens))
        given["stopping_criteria"] = end.further if isinstance(end, ContextEnd) else self._seeing_logits(end)
        with self._exclusive:
            if not len(tokens) and (reset or self.n_tokens == 0):
                raise ValueError("the prompt has no tokens")
            check_answers(self)
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
            if self._draft_model is not None and self._current.last is answer:
                self._measure.end(answer.n_prompt + answer.n_tokens - 1)

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
            if len(tokens) > read.micro_batch and answer is not None and answer.drafting and self._draft_model is not None:
                tokens = tokens[: read.micro_batch]  # of a longer draft not all logits would be there to be sampled from
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
            if self._read.window:  # the base class would go back to cells that are gone
                live = self.input_ids[: self.n_tokens]
                usable = min(usable, common_prefix(live, np.asarray(tokens, np.intc)))
        dropped = self._read.rewind(usable)
        if not (reset or dropped or pending or tokens) and self._requires_eval:
            return self._read.rewind(self.n_tokens - 1)
        return tokens if reset else dropped + pending + tokens

    def sample(self, *args: Any, **kwargs: Any) -> int:
        """As in the base class; after `load_state`, or a lower `n_tokens`, from the logits of the last token that is left."""
        with self._exclusive:
            if self._current.answer is None and self.n_tokens:
                self._read.settle()
                if self._requires_eval:
                    self.eval(self._read.rewind(self.n_tokens - 1))
            return super().sample(*args, **kwargs)

    def reset(self) -> None:
        """As in the base class; an answer that was going on ends."""
        with self._exclusive:
            super().reset()
            answer = self._current.answer
            if answer is not None and answer.skipped is not None:
                self._current.end()  # an answer that is decoding ends here; one that has not begun is resetting itself
            if answer is None or answer.skipped is not None:
                self._forget_answer()
            self._read.pending = []
            self._read.sync()

    def _forget_answer(self) -> None:
        """The last answer is no longer in the context: what its decoding chose is not to be compared with what comes there."""
        self._policy.settle(self._measure.fidelity)
        self._measure.clear()
