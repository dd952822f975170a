"""Lets rows answer questions, and measures how far their next-token distributions are from the dense model's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ContextFull, FirstCppError
from ..llama import Llama
from ..runtime.chat_prompt import chat_prompt
from ..runtime.greedy import answer_timed
from ..runtime.teacher_forcing import fidelity, follow, kl
from .answer_file import Answer, AnswerFile
from .questions import Question
from .rows import Row, needs_scores

MOST_KEPT = 1 << 30
"""Bytes of dense log probabilities that are kept for the rows of the next model files; further ones are found anew."""

FAILURES = (FirstCppError, RuntimeError, ValueError)
"""What may prevent an answer: it is counted, and the others go on."""


@dataclass(frozen=True)
class Against:
    """What divergence is measured against: the dense row, its model, and the numbers of the questions to measure it on."""

    row: Row
    llm: Llama
    measured: frozenset[int]
    _kept: dict[int, DenseAnswer] = field(default_factory=dict)

    def answer(self, number: int, question: Question, max_tokens: int) -> DenseAnswer | None:
        """The dense answer to a question; None where the dense model cannot answer."""
        if number in self._kept:
            return self._kept[number]
        found = DenseAnswer.of(self.llm, question, max_tokens)
        if found is not None and sum(one.log_probabilities.nbytes for one in (*self._kept.values(), found)) <= MOST_KEPT:
            self._kept[number] = found
        return found


def differs(row: Row, dense: Row) -> bool:
    """Whether a row is anything else than the dense model itself."""
    return (row.file, row.routers, row.skip) != (dense.file, dense.routers, dense.skip)  # dense has no tolerance


def is_compared(row: Row, dense: Row) -> bool:
    """Whether a row's next-token distributions are measured against the dense model's."""
    return row.same_vocabulary and differs(row, dense)


def _compared(rows: Sequence[Row], number: int, against: Against | None) -> list[Row]:
    if against is None or number not in against.measured:
        return []
    return [row for row in rows if is_compared(row, against.row)]


def answer_all(
    rows: Sequence[Row],
    questions: Sequence[Question],
    answers: AnswerFile,
    settings: dict[str, Any],
    max_tokens: int,
    against: Against | None,
    step: Callable[[Row], object],
) -> None:
    """Answer what is missing of rows that share a model file: each question goes to all of them, its prompt read once.

    settings: keywords of Llama. against: None where nothing is measured against dense. step: called after each answer.
    """
    missing = answers.missing(rows, len(questions))
    if not any(missing):
        return
    llm = Llama(rows[0].file, routers=rows[0].routers, skip=None, **settings)
    try:
        for number, (question, here) in enumerate(zip(questions, missing, strict=True)):
            compared = _compared(here, number, against)
            dense = against.answer(number, question, max_tokens) if against is not None and compared else None
            for row in sorted(here, key=needs_scores, reverse=True):  # a prompt read without scores is read again
                llm.skip, llm.tolerance = row.skip, row.tolerance
                found = _answer(llm, question, max_tokens)
                if "error" not in found:
                    found |= _measured(llm, row, number, dense if row in compared else None, against)
                answers.add({"row": row.name, "question": number, **found})
                step(row)
    finally:
        llm.close()


def _measured(llm: Llama, row: Row, number: int, dense: DenseAnswer | None, against: Against | None) -> Answer:
    """What is measured along the dense answer; the dense row's own choices are its answer."""
    if dense is not None:
        return {**dense.compare(llm)}
    is_dense = against is not None and number in against.measured and not differs(row, against.row)
    return {"fidelity": 1.0} if is_dense else {}


def measured_questions(questions: Sequence[Question], n: int, whole: Collection[str] = ()) -> frozenset[int]:
    """The numbers of the first `n` questions of each task, and of all questions of the tasks in `whole`."""
    seen: dict[str, int] = {}
    chosen = set()
    for number, question in enumerate(questions):
        seen[question.task] = seen.get(question.task, 0) + 1
        if seen[question.task] <= n or question.task in whole:
            chosen.add(number)
    return frozenset(chosen)


def _answer(llm: Llama, question: Question, max_tokens: int) -> Answer:
    """A greedy answer, or the error that stood in its way: it is counted, not dropped."""
    try:
        answer = answer_timed(llm, chat_prompt(llm, question.prompt), max_tokens)
    except FAILURES as error:
        return failed(question, error)
    routing = llm.routing
    assert routing is not None
    times = {"ttft_ms": answer.ttft * 1e3, "tpot_ms": answer.tpot * 1e3, "median_step_ms": answer.median_step * 1e3}
    return found_answer(llm, question, answer.tokens, answer.ended, routing.n_layer, routing.skipped) | times


def failed(question: Question, error: Exception) -> Answer:
    """What stands for an answer that an error prevented."""
    hint = "; give a larger --ctx" if isinstance(error, ContextFull) else ""
    return {"task": question.task, "text": "", "error": f"{type(error).__name__}: {error}{hint}"}


def found_answer(
    llm: Llama, question: Question, tokens: list[int], ended: bool, n_layer: int, skipped: Sequence[int]
) -> Answer:
    """An answer without its times."""
    return {
        "task": question.task,
        "text": llm.detokenize(tokens).decode("utf-8", "replace").strip(),
        "tokens": len(tokens),
        "ids": tokens,
        "ended": ended,
        "n_layer": n_layer,
        "skipped_layers": list(skipped),
    }


@dataclass(frozen=True)
class DenseAnswer:
    """The dense model's own greedy answer to a prompt, and its log probabilities on the way: [1 + n, n_vocab]."""

    prompt: list[int]
    answer: list[int]
    log_probabilities: npt.NDArray[np.float32]

    @classmethod
    def of(cls, llm: Llama, question: Question, max_tokens: int) -> DenseAnswer | None:
        """None where the dense model cannot answer."""
        try:
            prompt = chat_prompt(llm, question.prompt)
            answer = answer_timed(llm, prompt, max_tokens).tokens
        except FAILURES:
            return None
        return cls(prompt, answer, follow(llm, prompt, answer).astype(np.float32))

    def compare(self, llm: Llama) -> dict[str, float]:
        """Along the dense model's answer: KL from its next-token distributions to llm's, mean over positions, in nats; and the
        share of positions at which both have the same first choice."""
        found = follow(llm, self.prompt, self.answer)
        return {
            "kl": float(kl(self.log_probabilities.astype(np.float64), found).mean()),
            "fidelity": fidelity(found, self.answer),
        }
