"""What an evaluation is about to do, and about how long it takes: measured on the first question before the long part."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ..llama import Llama
from ..runtime.chat_prompt import chat_prompt
from ..runtime.greedy import answer_timed
from .asking import FAILURES
from .questions import Question
from .rows import Row, needs_scores

_STEPS = 8


@dataclass(frozen=True)
class Pace:
    """Seconds for a token of a prompt, for a decoded one, also where each prompt chooses the layers, and for one of an answer
    that is followed, on a model file of `n_bytes`."""

    prompt: float
    decoded: float
    chosen: float
    followed: float
    n_bytes: int

    @classmethod
    def of(cls, llm: Llama, question: Question) -> Pace:
        """Measure it on a question, some of whose answer is decoded dense."""
        try:
            prompt = chat_prompt(llm, question.prompt)
            answer = answer_timed(llm, prompt, _STEPS, ignore_end=True)
        except FAILURES:  # the question will get an error for an answer
            prompt = llm.tokenize(b"How are you?")
            answer = answer_timed(llm, prompt, _STEPS, ignore_end=True)
        llm.reset()
        step = answer.median_step
        return cls(answer.ttft / len(prompt), step, step, step, os.path.getsize(llm.model_path))

    def together(self, streams: int) -> Pace:
        """Where so many answers are decoded together: the weights are read once a step for all of them, but a token takes no
        less than one of a prompt does. Prompts that choose different layers have nobody to go with."""
        quick = min(self.prompt, self.decoded)
        return replace(self, decoded=max(quick, self.decoded / streams), followed=quick)


def prompt_lengths(llm: Llama, questions: Sequence[Question]) -> list[int]:
    """The tokens of each question in the model's chat template; 0 where the template refuses it, which will be its answer."""
    found = []
    for question in questions:
        try:
            found.append(len(chat_prompt(llm, question.prompt)))
        except FAILURES:
            found.append(0)
    return found


def longest_seconds(
    pace: Pace, missing: Sequence[Sequence[Row]], prompt_tokens: Sequence[int], max_tokens: int, compared: Collection[int]
) -> float:
    """Seconds that the missing answers take at most: each as long as the limit, nothing gained by skipping.

    missing: the rows by question; prompt_tokens: by question; compared: the questions that are also followed along the dense
    model's answer. Files are as slow as they are large.

    >>> row = Row("dense", "model.gguf", 0.0, None)
    >>> size = os.path.getsize("model.gguf")
    >>> longest_seconds(Pace(0.01, 0.1, 0.1, 0.1, size), [[row]], [100], 20, set())
    3.0
    """
    total = 0.0
    for number, (rows, n_prompt) in enumerate(zip(missing, prompt_tokens, strict=True)):
        read = set()
        for row in rows:
            scale = os.path.getsize(row.file) / pace.n_bytes
            decoded = pace.chosen if needs_scores(row) else pace.decoded
            answer = max_tokens * (decoded + pace.followed * (number in compared))
            first = (row.file, row.routers) not in read  # a prompt is read once for all rows of a file
            read.add((row.file, row.routers))
            total += scale * (answer + pace.prompt * n_prompt * first)
        if rows and number in compared:
            total += pace.prompt * n_prompt + (pace.decoded + pace.followed) * max_tokens
    return total
