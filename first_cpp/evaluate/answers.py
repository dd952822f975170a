"""Lets rows answer questions; every answer is kept in a file at once, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from ..errors import FirstCppError
from ..llama import Llama
from ..runtime.chat_prompt import chat_prompt
from .questions import Question
from .rows import Row

Logits = npt.NDArray[np.float64]


class Answers:
    """What was answered so far: one JSON object a line, by row and number of the question."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: dict[tuple[str, int], dict[str, Any]] = {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                for line in file:
                    if line.endswith("\n"):  # a line that a killed run began is answered again
                        one = json.loads(line)
                        self.found[one["row"], one["question"]] = one
            with open(path + ".part", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in self.found.values())
            os.replace(path + ".part", path)

    def add(self, one: dict[str, Any]) -> None:
        """Keep an answer."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(one, ensure_ascii=False) + "\n")
        self.found[one["row"], one["question"]] = one

    def of(self, row: Row, n_questions: int) -> list[dict[str, Any]]:
        """All answers of a row, by question."""
        return [self.found[row.name, number] for number in range(n_questions)]


def answer_all(
    rows: Sequence[Row],
    questions: Sequence[Question],
    answers: Answers,
    settings: dict[str, Any],
    max_tokens: int,
    dense: Llama | None,
    n_kl: int,
    step: Callable[[Row], object],
) -> None:
    """Answer what is missing of rows that share a model file: each question goes to all of them, its prompt read once.

    dense: what KL is taken to, over the first `n_kl` questions of each task. step: called after each answer.
    """
    missing = [[row for row in rows if (row.name, number) not in answers.found] for number in range(len(questions))]
    if not any(missing):
        return
    llm = Llama(rows[0].file, routers=rows[0].routers, skip=None, **settings)
    try:
        measured = kl_questions(questions, n_kl) if dense is not None else set()
        for number, (question, here) in enumerate(zip(questions, missing, strict=True)):
            wanted = None
            if dense is not None and number in measured and any(_diverges(row, dense) for row in here):
                wanted = Wanted.of(dense, question, max_tokens)
            for row in sorted(here, key=reads_scores, reverse=True):
                llm.skip = row.skip
                answer = {"row": row.name, "question": number, **_answer(llm, question, max_tokens)}
                if wanted is not None and "error" not in answer and _diverges(row, dense):
                    answer["kl"] = wanted.divergence(llm)
                answers.add(answer)
                step(row)
    finally:
        llm.close()


def reads_scores(row: Row) -> bool:
    """Whether a row needs the prompt's keep scores: such rows come first, since a prompt read without is read again."""
    return isinstance(row.skip, float)


def _diverges(row: Row, dense: Llama | None) -> bool:
    """Whether a row is anything else than the dense model itself."""
    return dense is not None and (row.file, row.routers, row.skip) != (dense.model_path, dense._arguments.routers, None)


def kl_questions(questions: Sequence[Question], n: int) -> set[int]:
    """The first `n` questions of each task."""
    seen: dict[str, int] = {}
    chosen = set()
    for number, question in enumerate(questions):
        seen[question.task] = seen.get(question.task, 0) + 1
        if seen[question.task] <= n:
            chosen.add(number)
    return chosen


def _answer(llm: Llama, question: Question, max_tokens: int) -> dict[str, Any]:
    """A greedy answer, or the error that stood in its way: it is counted, not dropped."""
    try:
        tokens, ended = generated(llm, chat_prompt(llm, question.prompt), max_tokens)
    except (FirstCppError, RuntimeError, ValueError) as error:
        return {"task": question.task, "text": "", "error": f"{type(error).__name__}: {error}"}
    routing, timing = llm.routing, llm.timing
    assert routing is not None
    return {
        "task": question.task,
        "text": llm.detokenize(tokens).decode("utf-8", "replace").strip(),
        "n_tokens": len(tokens),
        "ended": ended,
        "tpot": timing.tpot,
        "skipped": list(routing.skipped),
        "n_layer": routing.n_layer,
    }


def generated(llm: Llama, prompt: list[int], max_tokens: int) -> tuple[list[int], bool]:
    """The tokens of a greedy answer up to the end token, and whether there was one: not where a limit cut it off."""
    if len(prompt) + 1 >= llm.n_ctx():
        raise ValueError(f"the prompt has {len(prompt)} tokens, the context {llm.n_ctx()}; give a larger --ctx")
    found: list[int] = []
    ended = False
    answer = llm.generate(prompt, temp=0.0)
    for token in answer:
        if ended := llama_cpp.llama_vocab_is_eog(llm._model.vocab, token):
            break
        found.append(token)
        if len(found) == max_tokens or len(prompt) + len(found) + 1 >= llm.n_ctx():
            break
    answer.close()
    return found, ended


@dataclass(frozen=True)
class Wanted:
    """The dense model's own greedy answer to a prompt, and its log probabilities on the way: [1 + n, n_vocab]."""

    prompt: list[int]
    answer: list[int]
    log_probabilities: Logits

    @classmethod
    def of(cls, dense: Llama, question: Question, max_tokens: int) -> Wanted | None:
        """None where the dense model cannot answer."""
        try:
            prompt = chat_prompt(dense, question.prompt)
            answer, _ = generated(dense, prompt, max_tokens)
        except (FirstCppError, RuntimeError, ValueError):
            return None
        return cls(prompt, answer, follow(dense, prompt, answer))

    def divergence(self, llm: Llama) -> float:
        """KL from the dense model's next-token distributions to llm's, mean over the dense model's answer, in nats."""
        found = follow(llm, self.prompt, self.answer)
        return float((np.exp(self.log_probabilities) * (self.log_probabilities - found)).sum(axis=1).mean())


def follow(llm: Llama, prompt: list[int], answer: list[int]) -> Logits:
    """Decode `answer` after a prompt; log probabilities before each of its tokens and after the last, [1 + n, n_vocab]."""
    tokens = llm.generate(prompt, temp=0.0)
    next(tokens)
    rows = [log_probabilities(llm)]
    for token in answer:
        llm.eval([token])  # amid the answer: decoded as the answer is
        rows.append(log_probabilities(llm))
    tokens.close()
    return np.stack(rows)


def log_probabilities(llm: Llama) -> Logits:
    """Of the next token, float64 [n_vocab]."""
    row: Logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),)).astype(np.float64)
    shifted = row - row.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
