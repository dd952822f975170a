"""The dense model's greedy answers to all prompts, several decoded together, and what cost probes may read of each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..streams.engine import Engine, Floats
from ..streams.together import answers_together


@dataclass
class Answered:
    """A prompt and the dense model's answer: tokens without the end token.

    read: rmsnorm of what enters each layer, the mean over the prompt's positions, and then that of its last position: float32
    [2 * n_layer, n_embd].
    """

    prompt: list[int]
    read: Floats
    answer: list[int] = field(default_factory=list)


def answer_all(
    engine: Engine, prompts: Sequence[list[int]], max_tokens: int, norm_eps: float
) -> Iterator[tuple[int, Answered]]:
    """The number of each prompt and its answer of up to `max_tokens`, as they are done."""
    read = dict[int, Floats]()

    def read_prompt(number: int, prompt: Sequence[int], stream: int) -> Floats:
        read[number] = what_is_read(engine, prompt, stream, norm_eps)
        return engine.row(-1)

    for number, answer in answers_together(engine, prompts, max_tokens, read=read_prompt):
        yield number, Answered(prompts[number], read.pop(number), answer.tokens)


def what_is_read(engine: Engine, prompt: Sequence[int], stream: int, norm_eps: float) -> Floats:
    """Read a prompt; returns `Answered.read`, zeros where the model's hidden states cannot be read."""
    states = engine.read_prompt(prompt, stream, hidden=engine.readable)
    if not states:
        return np.zeros((2 * engine.n_layer, engine.n_embd()), np.float32)
    normed = [rmsnorm(state, norm_eps) for state in states]
    return np.stack([*(state.mean(axis=0) for state in normed), *(state[-1] for state in normed)])


def rmsnorm(states: Floats, norm_eps: float) -> Floats:
    """h / sqrt(mean(h^2) + norm_eps) of each row."""
    scale = np.sqrt((states.astype(np.float64) ** 2).mean(axis=-1, keepdims=True) + norm_eps)
    found: Floats = (states / scale).astype(np.float32)
    return found
