"""Test data: JSON Lines with task, prompt, response and where there are several, references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cli.jsonl import DataError, field, lines


@dataclass(frozen=True)
class Question:
    """One prompt and all answers that count as right; the first is the usual reference."""

    task: str
    prompt: str
    references: tuple[str, ...]


def read_questions(paths: Sequence[str], limit: int | None = None) -> list[Question]:
    """Read and check all lines; with `limit` only the first so many of each file.

    Raises DataError naming file and line, MissingFileError for a file that is not there.
    """
    questions = []
    for path in paths:
        for number, (where, record) in enumerate(lines(path)):
            if limit is not None and number >= limit:
                break
            prompt, response = field(record, "prompt", where), field(record, "response", where)
            references = record.get("references", [response])
            if not isinstance(references, list) or not all(isinstance(one, str) for one in references) or not references:
                raise DataError(f"{where}: references is {references!r}, expected a list of texts")
            questions.append(Question(str(record.get("task", "")), prompt, tuple(references)))
    if not questions:
        raise DataError(f"no lines in {', '.join(paths)}")
    return questions
