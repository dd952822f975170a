"""Answers to many prompts, several decoded together, as they are done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import llama_cpp

from ..errors import LogitsError
from .engine import Engine, Floats

Read = Callable[[int, Sequence[int], int], Floats]
"""Reads the prompt of a number into a stream; returns the logits after it, [n_vocab]."""
Choose = Callable[[int, Floats], int]
"""The next token of the answer to the prompt of a number, from logits [n_vocab], which are gone after it."""


@dataclass
class Answer:
    """An answer: its tokens, and the token with which the model ended it, or None where a limit did."""

    tokens: list[int] = field(default_factory=list)
    end: int | None = None


@dataclass
class _Stream:
    """What one stream is busy with. token: the one to be read next."""

    number: int
    n_prompt: int
    answer: Answer
    token: int


def first_choice(_number: int, logits: Floats) -> int:
    """The most probable token. Raises LogitsError for NaN and infinity, as an answer by itself does."""
    token = int(logits.argmax())  # of several numbers and a NaN, the NaN
    if not math.isfinite(logits[token]):
        raise LogitsError("the model computed logits that are no numbers (NaN or infinite)")
    return token


def answers_together(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    choose: Choose = first_choice,
    read: Read | None = None,
    skipped: frozenset[int] = frozenset(),
) -> Iterator[tuple[int, Answer]]:
    """The number of each prompt and its answer of up to `max_tokens`, or to the end of the stream's room, as they are done.

    skipped: layers that no answer is decoded with. A prompt and one token more must fit into `engine.room`.

    >>> engine = Engine("model.gguf", n_tokens=64, n_threads=1, streams=2)
    >>> tokens = engine.tokenize(b"Once upon a time")
    >>> sorted((number, len(answer.tokens)) for number, answer in answers_together(engine, [tokens] * 3, 5))
    [(0, 5), (1, 5), (2, 5)]
    >>> engine.close()
    """
    vocabulary = llama_cpp.llama_model_get_vocab(engine.model)
    waiting = list(enumerate(prompts))[::-1]
    free, busy = list(range(engine.streams)), dict[int, _Stream]()

    def is_done(one: _Stream) -> bool:
        if llama_cpp.llama_vocab_is_eog(vocabulary, one.token):
            one.answer.end = one.token
            return True
        one.answer.tokens.append(one.token)
        return len(one.answer.tokens) >= min(max_tokens, engine.room - one.n_prompt)

    while waiting or busy:
        while waiting and free:
            number, prompt = waiting.pop()
            logits = (read or _plainly(engine))(number, prompt, free[-1])
            one = _Stream(number, len(prompt), Answer(), choose(number, logits))
            if is_done(one):
                yield number, one.answer
            else:
                busy[free.pop()] = one
        if not busy:
            continue
        for gap, stream in _moves(busy):
            engine.move(stream, gap)
            busy[gap] = busy.pop(stream)
            free[free.index(gap)] = stream
        streams = sorted(busy)
        ones = [busy[stream] for stream in streams]
        positions = [one.n_prompt + len(one.answer.tokens) - 1 for one in ones]
        engine.read_next([one.token for one in ones], positions, streams, skipped)
        done = []
        for i, one in enumerate(ones):
            one.token = choose(one.number, engine.row(i))
            if is_done(one):
                done.append(one)
                free.append(streams[i])
                del busy[streams[i]]
        yield from ((one.number, one.answer) for one in done)


def _moves(busy: Iterable[int]) -> list[tuple[int, int]]:
    """Gaps among the busy streams, and those that fill them: llama.cpp evaluates neighbours in one micro-batch, and a layer is
    skipped in one.

    >>> _moves({0, 2, 5, 7})
    [(1, 5), (3, 7)]
    """
    taken = sorted(busy)
    gaps = sorted({*range(len(taken))} - {*taken})
    return list(zip(gaps, taken[len(taken) - len(gaps) :], strict=True))


def _plainly(engine: Engine) -> Read:
    def read(_number: int, prompt: Sequence[int], stream: int) -> Floats:
        engine.read_prompt(prompt, stream)
        return engine.row(-1)

    return read
