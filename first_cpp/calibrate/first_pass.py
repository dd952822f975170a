"""The dense model's greedy answers to all prompts, several decoded together, and what the cost probes read of each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import llama_cpp
import numpy as np

from .cost import Floats
from .engine import Engine


@dataclass
class Answered:
    """A prompt and the dense model's answer: tokens without the end token.

    read: mean over the prompt's positions of rmsnorm of what enters each layer, float32 [n_layer, n_embd].
    """

    prompt: list[int]
    read: Floats
    answer: list[int] = field(default_factory=list)


def answer_all(
    engine: Engine, prompts: Sequence[list[int]], max_tokens: int, norm_eps: float
) -> Iterator[tuple[int, Answered]]:
    """The number of each prompt and its answer of up to `max_tokens`, as they are done."""
    waiting = list(enumerate(prompts))[::-1]
    free, busy = list(range(engine.streams)), dict[int, tuple[int, Answered, int]]()
    while waiting or busy:
        while waiting and free:
            number, prompt = waiting.pop()
            one = Answered(prompt, mean_read(engine, prompt, free[-1], norm_eps))
            token = int(engine.row(-1).argmax())
            if _ends(engine, token):
                yield number, one
                continue
            busy[free.pop()] = number, one, token
        if not busy:
            continue
        streams_now = sorted(busy)
        tokens = [busy[stream][2] for stream in streams_now]
        positions = [len(busy[stream][1].prompt) + len(busy[stream][1].answer) for stream in streams_now]
        for stream, token, following in zip(
            streams_now, tokens, engine.next_tokens(tokens, positions, streams_now), strict=True
        ):
            number, one, _ = busy[stream]
            one.answer.append(token)
            busy[stream] = number, one, following
            if len(one.answer) >= max_tokens or _ends(engine, following):
                del busy[stream]
                free.append(stream)
                yield number, one


def mean_read(engine: Engine, prompt: Sequence[int], stream: int, norm_eps: float) -> Floats:
    """Read a prompt; returns the mean of rmsnorm of each layer's input, float32 [n_layer, n_embd], zeros where unreadable."""
    states = engine.read_prompt(prompt, stream, hidden=engine.readable)
    if not states:
        return np.zeros((engine.n_layer, engine.n_embd()), np.float32)
    return np.stack([rmsnorm(state, norm_eps).mean(axis=0) for state in states])


def rmsnorm(states: Floats, norm_eps: float) -> Floats:
    """h / sqrt(mean(h^2) + norm_eps) of each row."""
    scale = np.sqrt((states.astype(np.float64) ** 2).mean(axis=-1, keepdims=True) + norm_eps)
    found: Floats = (states / scale).astype(np.float32)
    return found


def _ends(engine: Engine, token: int) -> bool:
    return bool(llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(engine.model), token))
