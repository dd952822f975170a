"""How long a decoding step takes with some layers skipped."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

from ..streams.engine import Engine

LEAST_TURNS = 5
"""Times that the speed is measured, however short the time or the answer."""
MOST_TURNS = 24


def step_times(
    engine: Engine, prompt: Sequence[int], answer: Sequence[int], sets: Sequence[frozenset[int]], until: float = math.inf
) -> list[list[float]]:
    """Seconds of decoding steps with each set skipped, all in turns so that a noisy machine slows them alike.

    answer: its tokens are read one after another, each at the same position, and again where there are few. until: on the
    monotonic clock; a few turns are made in any case.
    """
    engine.read_prompt(prompt)
    prefix = engine.saved()
    times: list[list[float]] = [[] for _ in sets]
    for turn, token in enumerate(itertools.islice(itertools.cycle(answer), MOST_TURNS)):
        if turn >= LEAST_TURNS and time.monotonic() > until:
            break
        for which, layers in enumerate(sets):
            for again in (False, True):  # the first builds the graph
                engine.restore(prefix)
                start = time.perf_counter()
                engine.rows([token], len(prompt), layers)
                if again:
                    times[which].append(time.perf_counter() - start)
    return times
