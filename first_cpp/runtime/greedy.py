"""One greedy answer with the times of its tokens: what the demo and the benchmarks measure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import llama_cpp


@dataclass(frozen=True)
class TimedAnswer:
    """tokens: the answer. ttft: seconds to the first token. steps: seconds for each token after it."""

    tokens: list[int]
    ttft: float
    steps: list[float]

    @property
    def tpot(self) -> float:
        """Median seconds per output token after the first; 0 when there was none."""
        return statistics.median(self.steps) if self.steps else 0.0


def answer_timed(llm: llama_cpp.Llama, prompt: Sequence[int], max_tokens: int, ignore_end: bool = False) -> TimedAnswer:
    """Answer `prompt` greedily, to the end token or `max_tokens`; sampling is timed with the decoding it follows."""
    tokens: list[int] = []
    steps: list[float] = []
    last = time.perf_counter()
    generator = llm.generate(list(prompt), temp=0.0, repeat_penalty=1.0)
    try:
        for token in generator:
            now = time.perf_counter()
            steps.append(now - last)
            last = now
            if not ignore_end and llama_cpp.llama_vocab_is_eog(llm._model.vocab, token):
                break
            tokens.append(token)
            if len(tokens) >= max_tokens:
                break
    finally:
        generator.close()
    return TimedAnswer(tokens, steps[0], steps[1:])
