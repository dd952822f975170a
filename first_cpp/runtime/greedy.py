"""Greedy answers, timed token by token: what demo, bench, eval and the benchmarks measure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import llama_cpp

from ..errors import ContextFull


@dataclass(frozen=True)
class TimedAnswer:
    """One greedy answer.

    tokens: the answer, without the end token. ttft: seconds to the first token, 0 for an empty answer. steps: seconds of each
    token after the first. ended: whether the model ended the answer, not a limit.

    >>> answer = TimedAnswer([5, 6, 7, 8], ttft=0.3, steps=[0.1, 0.1, 0.4], ended=False)
    >>> answer.tpot, answer.median_step
    (0.2, 0.1)
    """

    tokens: list[int]
    ttft: float
    steps: list[float]
    ended: bool

    @property
    def tpot(self) -> float:
        """Mean seconds per output token after the first; 0 where there was none."""
        return statistics.mean(self.steps) if self.steps else 0.0

    @property
    def median_step(self) -> float:
        """Median seconds of a decoding step: an interruption of the machine hardly changes it; 0 where there was no step."""
        return statistics.median(self.steps) if self.steps else 0.0


def timed_tokens(llm: llama_cpp.Llama, prompt: Sequence[int]) -> Generator[tuple[int, float], None, None]:
    """The tokens of a greedy answer without end, each with the seconds it took; sampling is timed with the decoding before it.

    What the consumer does between two tokens is not timed.

    >>> import llama_cpp
    >>> llm = llama_cpp.Llama("model.gguf", n_ctx=256, verbose=False)
    >>> tokens = timed_tokens(llm, llm.tokenize(b"Once"))
    >>> [next(tokens)[1] > 0 for _ in range(3)]
    [True, True, True]
    >>> llm.close()
    """
    generator = llm.generate(list(prompt), temp=0.0, repeat_penalty=1.0)
    try:
        start = time.perf_counter()
        for token in generator:
            yield int(token), time.perf_counter() - start
            start = time.perf_counter()
    finally:
        generator.close()


def context_size(llm: llama_cpp.Llama) -> int:
    """Positions that a model has room for: llama.cpp rounds n_ctx up to a multiple of 256, and stock llama_cpp says so, but
    records no more tokens than it was asked for."""
    return min(int(llm.n_ctx()), len(llm.input_ids))


def answer_tokens(
    llm: llama_cpp.Llama, prompt: Sequence[int], max_tokens: int, ignore_end: bool = False
) -> Generator[tuple[int, float], None, bool]:
    """`timed_tokens` up to `max_tokens`, the end token (which is not yielded) or the end of the context.

    Returns whether the model ended the answer. Raises ContextFull for a prompt that leaves no room for an answer.
    """
    room = context_size(llm) - len(prompt)
    if room < 2:
        raise ContextFull(f"the prompt has {len(prompt)} tokens, the context {context_size(llm)}")
    tokens = timed_tokens(llm, prompt)
    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    try:
        for n, (token, seconds) in enumerate(tokens, 1):
            if not ignore_end and llama_cpp.llama_vocab_is_eog(vocabulary, token):
                return True
            yield token, seconds
            if n >= min(max_tokens, room - 1):
                return False
    finally:
        tokens.close()
    return False


def answer_timed(llm: llama_cpp.Llama, prompt: Sequence[int], max_tokens: int, ignore_end: bool = False) -> TimedAnswer:
    """Answer `prompt` greedily, to the end token, `max_tokens` or the end of the context. Raises as `answer_tokens` does.

    >>> from first_cpp import Llama
    >>> llm = Llama("model.gguf", n_ctx=256, verbose=False)
    >>> answer = answer_timed(llm, llm.tokenize(b"Once upon a time"), 8, ignore_end=True)
    >>> len(answer.tokens), len(answer.steps), answer.ended
    (8, 7, False)
    >>> llm.close()
    """
    tokens: list[int] = []
    seconds: list[float] = []
    answer = answer_tokens(llm, prompt, max_tokens, ignore_end)
    while True:
        try:
            token, taken = next(answer)
        except StopIteration as stop:
            return TimedAnswer(tokens, seconds[0] if seconds else 0.0, seconds[1:], bool(stop.value))
        tokens.append(token)
        seconds.append(taken)
