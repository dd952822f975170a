"""One answer: what its prompt decided, how long it takes, and what ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import AnswerCancelled, BusyError, ContextFull
from .one_thread import OneThread


@dataclass(frozen=True)
class Timing:
    """How long an answer took so far. Time that the consumer of its tokens spends between them does not count.

    n_tokens: tokens generated. ttft: seconds to the first one, 0 before it. tpot: mean seconds per token after it, 0 before
    the second. last_token: the token generated last, -1 before the first.

    >>> Timing(n_tokens=3, ttft=0.2, tpot=0.05)
    <Timing: 3 tokens, TTFT 0.200 s, TPOT 50.0 ms>
    """

    n_tokens: int = 0
    ttft: float = 0.0
    tpot: float = 0.0
    last_token: int = -1

    def line(self) -> str:
        """The times for people.

        >>> Timing(n_tokens=3, ttft=0.2, tpot=0.05).line()
        '3 tokens, TTFT 0.200 s, TPOT 50.0 ms'
        """
        ttft = f", TTFT {self.ttft:.3f} s" if self.n_tokens else ""
        tpot = f", TPOT {self.tpot * 1e3:.1f} ms" if self.n_tokens > 1 else ""
        return f"{self.n_tokens} token{'s' * (self.n_tokens != 1)}{ttft}{tpot}"

    def __repr__(self) -> str:
        return f"<Timing: {self.line()}>"


class Answer:
    """The state of one answer: nothing decided during prefill, then the layers that its decoding skips."""

    __slots__ = (
        "_resumed",
        "cancelled",
        "decode",
        "n_prompt",
        "running",
        "skipped",
        "thread",
        "tokens",
        "ttft",
    )

    def __init__(self, n_prompt: int = 0) -> None:
        self.n_prompt = n_prompt
        """Tokens of the prompt, those reused included."""
        self.skipped: frozenset[int] | None = None
        self.cancelled = False
        self.running = False
        self.thread = threading.get_ident()  # that began it
        self.tokens: list[int] = []
        """Those generated."""
        self.ttft = 0.0
        self.decode = 0.0
        self._resumed = time.perf_counter()

    def resume(self) -> None:
        """Start the clock for the next token."""
        self._resumed = time.perf_counter()

    def count(self, token: int) -> None:
        """A token is there: stop the clock."""
        elapsed = time.perf_counter() - self._resumed
        if not self.tokens:
            self.ttft = elapsed
        else:
            self.decode += elapsed
        self.tokens.append(token)

    @property
    def n_tokens(self) -> int:
        """How many tokens were generated."""
        return len(self.tokens)

    @property
    def drafting(self) -> bool:
        """Whether the base class is decoding, and may have tokens evaluated that a draft model has guessed."""
        return self.running and self.skipped is not None

    @property
    def timing(self) -> Timing:
        n_tokens = self.n_tokens
        tpot = self.decode / (n_tokens - 1) if n_tokens > 1 else 0.0
        return Timing(n_tokens, self.ttft, tpot, self.tokens[-1] if n_tokens else -1)


class ContextEnd:
    """A stopping criterion beside the caller's `further` one: whether a completion ran into the end of the context.

    The base class looks at max_tokens only where no character is cut in two, so that an answer may come to need more room.
    """

    __slots__ = ("further", "reached")

    def __init__(self, further: Callable[..., Any] | None) -> None:
        self.further = further
        self.reached = False

    def __call__(self, tokens: Any, logits: Any) -> bool:
        return self.reached or (self.further is not None and bool(self.further(tokens, logits)))


class CurrentAnswer:
    """The answer that a model is at, if any; it can be cancelled from any thread.

    abort: ends evaluations while it is on, from any thread.
    """

    def __init__(self, abort: Callable[[bool], None]) -> None:
        self._abort = abort
        self._lock = threading.Lock()
        self.answer: Answer | None = None
        self.last: Answer | None = None
        """The answer begun last, whether or not it has ended; None before the first."""

    def begin(self, answer: Answer) -> None:
        self._set(answer)
        self.last = answer

    def end(self, answer: Answer | None = None) -> None:
        """The answer has ended, whichever it is, or only if it is this one."""
        if answer is None or self.answer is answer:
            self._set(None)

    def _set(self, answer: Answer | None) -> None:
        with self._lock:
            self.answer = answer
            self._abort(False)

    def cancel(self, thread: int | None = None) -> None:
        """End the answer as soon as it can be, or only if that thread began it; a suspended one ends when it is resumed."""
        with self._lock:
            if self.answer is not None and thread in (None, self.answer.thread):
                self.answer.cancelled = True
                self._abort(self.answer.running)

    def is_cancelled(self) -> bool:
        """Whether the answer going on has been cancelled."""
        answer = self.answer
        return answer is not None and answer.cancelled

    def go_on(self, answer: Answer) -> None:
        """`answer` is resumed. Raises BusyError after a newer one, AnswerCancelled after `cancel`."""
        with self._lock:
            if self.answer is not answer:
                raise BusyError("this answer cannot go on: the same Llama was reset or given a newer prompt")
            if answer.cancelled:
                raise AnswerCancelled("the answer was cancelled")
            answer.running = True

    def steps(
        self, inner: Generator[int, Any, None], answer: Answer, lock: OneThread, end: ContextEnd | None
    ) -> Generator[int, Sequence[int] | None, None]:
        """The tokens of `inner`, each made under the lock, with the time they take.

        end: is told where the context ends; without it, and during prefill, that is ContextFull. Raises AnswerCancelled.
        """
        sent: Sequence[int] | None = None
        while True:
            with lock:
                self.go_on(answer)
                try:
                    token = inner.send(sent)
                except StopIteration:
                    return
                except ContextFull:
                    if answer.skipped is None or end is None:
                        raise
                    end.reached = True
                    return
                except RuntimeError as error:
                    if answer.cancelled:
                        raise AnswerCancelled("the answer was cancelled") from error
                    raise
                answer.running = False
                if answer.cancelled:
                    raise AnswerCancelled("the answer was cancelled")
            answer.count(token)
            sent = yield token
            answer.resume()
