"""A second turn, and how near its logits must be."""

from __future__ import annotations

import numpy as np
from helpers import logits, tokens

PROMPT, MORE = tokens(60, seed=1), tokens(25, seed=2)
CLOSE = 0.03  # logits, against a spread of about 1


class Answer(list):
    """Greedy tokens, equal up to a near tie: there the rounding of kernels, another on every CPU, decides."""

    __hash__ = None

    margins: tuple[float, ...]

    def __eq__(self, other):
        first = next((i for i, (a, b) in enumerate(zip(self, other, strict=True)) if a != b), None)
        return first is None or self.margins[first] < 2 * CLOSE


def margin(llm) -> float:
    second, best = np.sort(logits(llm)[0])[-2:]
    return float(best - second)


def second_turn(llm, prompt):
    """Logits after the prompt, the greedy answer, and what was decided; llm.reused: positions that were not read again."""
    generator = llm.generate(prompt, temp=0.0)
    evaluate = llm._read.evaluate

    def first_evaluate(batch, *rest):
        llm.reused, llm._read.evaluate = len(prompt) - len(batch), evaluate
        evaluate(batch, *rest)

    llm._read.evaluate = first_evaluate
    first = next(generator)
    row = logits(llm)[0]
    answer, margins = Answer([first]), [margin(llm)]
    for _ in range(11):
        answer.append(next(generator))
        margins.append(margin(llm))
    answer.margins = tuple(margins)
    generator.close()
    return row, answer, llm.routing.skipped
