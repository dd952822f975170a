"""Times several models token by token in turns, so that a noisy machine slows all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence

import llama_cpp


def decode_times(models: Mapping[str, llama_cpp.Llama], prompt: Sequence[int], n_tokens: int) -> dict[str, list[float]]:
    """Seconds of each decoding step (sampling included) of a greedy answer, all models in turns, in random order."""
    answers = {}
    for name, llm in models.items():
        llm.reset()
        answers[name] = llm.generate(list(prompt), temp=0.0, repeat_penalty=1.0)
        next(answers[name])
        next(answers[name])  # the first decoding step builds the graph
    times: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    rng = random.Random(0)
    for _ in range(n_tokens):
        rng.shuffle(order)
        for name in order:
            start = time.perf_counter()
            next(answers[name])
            times[name].append(time.perf_counter() - start)
    for answer in answers.values():
        answer.close()
    return times


def prefill_times(models: Mapping[str, llama_cpp.Llama], prompt: Sequence[int], rounds: int) -> dict[str, list[float]]:
    """Seconds to the first token, all models in turns, in random order."""
    times: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    rng = random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            models[name].reset()
            start = time.perf_counter()
            answer = models[name].generate(list(prompt), temp=0.0, repeat_penalty=1.0)
            next(answer)
            times[name].append(time.perf_counter() - start)
            answer.close()
    return times


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> float:
    """Median over the turns of one model's time over another's."""
    return statistics.median(a / b for a, b in zip(times[of], times[to], strict=True))
