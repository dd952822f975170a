"""Times several models token by token in turns, so that a noisy machine slows all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import llama_cpp

Times = dict[str, list[float]]
"""Seconds by model name."""


def decode_times(models: Mapping[str, llama_cpp.Llama], prompt: Sequence[int], n_tokens: int, warm_up: int = 1) -> Times:
    """Seconds of each decoding step (sampling included) of a greedy answer, all models in turns, in random order."""
    answers = {}
    for name, llm in models.items():
        answers[name] = llm.generate(list(prompt), temp=0.0, repeat_penalty=1.0)
        for _ in range(1 + warm_up):  # the first step decodes the prompt, the next builds the graph of decoding
            next(answers[name])
    times: Times = {name: [] for name in models}
    for name in _turns(models, n_tokens):
        start = time.perf_counter()
        next(answers[name])
        times[name].append(time.perf_counter() - start)
    for answer in answers.values():
        answer.close()
    return times


def prefill_times(models: Mapping[str, llama_cpp.Llama], prompt: Sequence[int], rounds: int) -> Times:
    """Seconds to the first token of a prompt of which nothing is there, all models in turns, in random order."""
    return call_times(models, lambda llm: _first_token(llm, prompt), rounds, before=lambda llm: llm.reset())


def call_times(
    models: Mapping[str, llama_cpp.Llama],
    call: Callable[[llama_cpp.Llama], object],
    rounds: int,
    before: Callable[[llama_cpp.Llama], object] = lambda llm: None,
) -> Times:
    """Seconds of `call` on each model, all in turns, in random order. `before` is not timed."""
    times: Times = {name: [] for name in models}
    for name in _turns(models, rounds):
        before(models[name])
        start = time.perf_counter()
        call(models[name])
        times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> float:
    """Median over the turns of one model's time over another's."""
    return statistics.median(a / b for a, b in zip(times[of], times[to], strict=True))


def _first_token(llm: llama_cpp.Llama, prompt: Sequence[int]) -> None:
    answer = llm.generate(list(prompt), temp=0.0, repeat_penalty=1.0)
    next(answer)
    answer.close()


def _turns(models: Mapping[str, llama_cpp.Llama], rounds: int) -> list[str]:
    rng, order, turns = random.Random(0), list(models), []
    for _ in range(rounds):
        rng.shuffle(order)
        turns += order
    return turns
