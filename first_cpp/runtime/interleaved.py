"""Times several models token by token in turns, so that a noisy machine slows all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import llama_cpp

from .greedy import timed_tokens

Times = dict[str, list[float]]
"""Seconds by model name."""


def decode_times(models: Mapping[str, llama_cpp.Llama], prompt: Sequence[int], n_tokens: int, warm_up: int = 1) -> Times:
    """Seconds of each decoding step (sampling included) of a greedy answer, all models in turns, in random order."""
    answers = {name: timed_tokens(llm, prompt) for name, llm in models.items()}
    for answer in answers.values():
        for _ in range(1 + warm_up):  # the first step decodes the prompt, the next builds the graph of decoding
            next(answer)
    times: Times = {name: [] for name in models}
    for name in turns(models, n_tokens):
        times[name].append(next(answers[name])[1])
    for answer in answers.values():
        answer.close()
    return times


def call_times(
    models: Mapping[str, llama_cpp.Llama],
    call: Callable[[llama_cpp.Llama], object],
    rounds: int,
    before: Callable[[llama_cpp.Llama], object] = lambda llm: None,
) -> Times:
    """Seconds of `call` on each model, all in turns, in random order. `before` is not timed."""
    times: Times = {name: [] for name in models}
    for name in turns(models, rounds):
        before(models[name])
        start = time.perf_counter()
        call(models[name])
        times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> float:
    """Median over the turns of one model's time over another's.

    >>> ratio({"a": [2.0, 4.0, 9.0], "b": [1.0, 1.0, 3.0]}, "a", "b")
    3.0
    """
    return statistics.median(a / b for a, b in zip(times[of], times[to], strict=True))


BUSY = 0.5
"""A machine is busy where the middle half of a model's steps spreads by more than this share of their median."""


def busy_by(times: Mapping[str, list[float]]) -> float:
    """How far the middle half of the steps spreads, over their median: the most of all models. Above BUSY nothing can be said.

    >>> busy_by({"a": [1.0, 1.0, 1.0, 1.1, 1.1], "b": [1.0, 1.0, 2.0, 4.0, 5.0]})
    1.5
    """
    spreads = []
    for seconds in times.values():
        low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
        spreads.append((high - low) / middle)
    return max(spreads)


def turns(names: Iterable[str], rounds: int) -> list[str]:
    """Each name once a round, in an order that is drawn anew for every round."""
    rng, order, found = random.Random(0), list(names), []
    for _ in range(rounds):
        rng.shuffle(order)
        found += order
    return found
