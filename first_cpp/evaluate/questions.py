"""Test data: JSON Lines with task, prompt, response and where there are several, references; or prompts alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ..cli.jsonl import DataError, field, lines, task_of


@dataclass(frozen=True)
class Question:
    """One prompt and all answers that count as right; the first is the usual reference.

    references: none where the dense model's own answer is the reference. where: FILE:LINE.
    """

    task: str
    prompt: str
    references: tuple[str, ...]
    where: str = ""


def read_questions(paths: Sequence[str], limit: int | None = None) -> list[Question]:
    """Read and check all lines; with `limit` only the first so many of each file.

    Raises DataError naming file and line, MissingFileError for a file that is not there.
    """
    questions = []
    for path in paths:
        for number, (where, record) in enumerate(lines(path)):
            if limit is not None and number >= limit:
                break
            prompt = field(record, "prompt", where)
            questions.append(Question(task_of(record, where), prompt, _references(record, where), where))
    if not questions:
        raise DataError(f"no lines in {', '.join(paths)}")
    return questions


def _references(record: dict[str, Any], where: str) -> tuple[str, ...]:
    """None for a line that has a prompt alone."""
    if "response" not in record and "references" not in record:
        return ()
    references = record["references"] if "references" in record else [field(record, "response", where)]
    if not isinstance(references, list) or not all(isinstance(one, str) for one in references) or not references:
        raise DataError(f"{where}: references is {references!r}, expected a list of texts")
    return tuple(references)


def tasks_of_prompts(questions: Sequence[Question]) -> set[str]:
    """The tasks of which no question has a reference.

    >>> tasks_of_prompts([Question("qa", "Who?", ("I",)), Question("chat", "Hello", ())])
    {'chat'}
    """
    return {question.task for question in questions} - {question.task for question in questions if question.references}


def check_references(questions: Sequence[Question], without: Collection[str]) -> None:
    """Raise DataError for a question that has no reference, unless its task is one of those scored without."""
    for question in questions:
        if not question.references and question.task not in without:
            raise DataError(
                f"{question.where}: response is missing, expected text; a task of prompts alone is scored by fidelity to the "
                f"dense model's own answers (--metric {question.task}=fidelity)"
            )
