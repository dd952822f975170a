"""The answers of an evaluation: each is kept in a file at once, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from ..errors import OptionError
from ..gguf.new_file import new_file
from .rows import Row

Answer = dict[str, Any]
"""row, question, task, text; then error, or tokens, ids, ended, times, layers, and what was measured against dense."""


class AnswerFile:
    """What was answered so far: one JSON object a line, by row and number of the question.

    A line that a killed run began is dropped, and answered again.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: dict[tuple[str, int], Answer] = {}
        if os.path.exists(path):
            with open(path, "rb") as file:  # the line may end amid a character
                whole = [json.loads(line) for line in file if line.endswith(b"\n")]
            self.found = {(one["row"], one["question"]): one for one in whole}
            with new_file(path, "w") as file:
                file.writelines(_line(one) for one in self.found.values())

    def add(self, one: Answer) -> None:
        """Keep an answer."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(one))
        self.found[one["row"], one["question"]] = one

    def of(self, row: Row, n_questions: int) -> list[Answer]:
        """All answers of a row, by question."""
        return [self.found[row.name, number] for number in range(n_questions)]

    def missing(self, rows: Sequence[Row], n_questions: int) -> list[list[Row]]:
        """For each question the rows that have not answered it."""
        return [[row for row in rows if (row.name, number) not in self.found] for number in range(n_questions)]


def _line(one: Answer) -> str:
    return json.dumps(one, ensure_ascii=False) + "\n"


def check_same_run(folder: str, mine: dict[str, Any]) -> None:
    """Note in `folder` what its answers depend on; rows may be added, the rest must be as before.

    mine: what they depend on, fit for JSON; under "rows" the identity of each row by its name. Raises OptionError where answers
    of another evaluation are there, or of one that is not known.
    """
    path = os.path.join(folder, "run.json")
    answered = os.path.exists(os.path.join(folder, "answers.jsonl"))
    if answered and not os.path.exists(path):
        raise OptionError(f"--out {folder} holds answers without the run.json that says of what; choose another folder")
    if answered:
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        kept = before.get("rows", {})
        different = [key for key in mine if key != "rows" and before.get(key) != mine[key]]
        different += [f"row {name}" for name, what in mine["rows"].items() if kept.get(name, what) != what]
        if different:
            raise OptionError(f"--out {folder} holds an evaluation with other {', '.join(different)}; choose another folder")
        mine = {**mine, "rows": kept | mine["rows"]}
    with new_file(path, "w") as file:
        json.dump(mine, file)
