"""The user's examples, checked and split into those to train, to validate and to test on."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..cli import jsonl
from ..cli.jsonl import DataError, field, lines
from ..cli.scripts import words_apart
from ..gguf.new_file import new_file

Record = dict[str, Any]
"""A line of the user's: prompt, response, perhaps task, references and more."""

LEAST = 24
"""Fewer examples to learn from: too few prompts to calibrate on, and nothing to learn."""
TEST_PART, MOST_TEST = 0.2, 100
"""Of each task's examples, kept for the report at the end."""
VALID_PART, MOST_VALID = 0.1, 50
SHORT_WORDS = 12
"""A task whose median answer is no longer is scored as one of questions."""
KNOWN_TASKS = ("translation", "tldr", "dialogue", "qa")
"""Those for which `first-cpp eval` has a metric of its own."""


@dataclass(frozen=True)
class Split:
    """train, valid, test: the records. dropped: lines that said again what one before them says."""

    train: list[Record]
    valid: list[Record]
    test: list[Record]
    dropped: int = 0

    @property
    def tasks(self) -> dict[str, int]:
        """The tasks and how many examples each has, in all parts."""
        found: dict[str, int] = defaultdict(int)
        for record in (*self.train, *self.valid, *self.test):
            found[task_of(record)] += 1
        return dict(found)

    def write(self, folder: str) -> None:
        """train.jsonl, valid.jsonl and test.jsonl, and the prompts to calibrate on, those of test not among them."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        parts["prompts"] = [{"task": task_of(one), "prompt": one["prompt"]} for one in (*self.valid, *self.train)]
        for name, records in parts.items():
            with new_file(os.path.join(folder, f"{name}.jsonl"), "w") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def task_of(record: Record) -> str:
    """The task of a record that was read, empty where it names none."""
    return str(record.get("task", ""))


def read_records(paths: Sequence[str]) -> list[Record]:
    """All lines of the files, each with prompt and response.

    Raises DataError naming file and line, MissingFileError for a file that is not there.
    """
    found = []
    for path in paths:
        for where, record in lines(path):
            field(record, "prompt", where)
            field(record, "response", where)
            if "task" in record:
                record["task"] = jsonl.task_of(record, where)
            references = record.get("references", [""])
            if not isinstance(references, list) or not references or not all(isinstance(one, str) for one in references):
                raise DataError(f"{where}: references is {references!r:.80}, expected a list of texts")
            found.append(record)
    return found


def split(
    data: Sequence[Record], seed: int, valid: Sequence[Record] | None = None, test: Sequence[Record] | None = None
) -> Split:
    """Split by task and seed; `valid` and `test` are taken as they are, where given.

    Examples of one prompt stay together: a prompt that was trained on is no test. Raises DataError for too few examples, and
    for test prompts that are among those to train on.

    >>> data = [{"prompt": f"Say {i}.", "response": str(i)} for i in range(40)]
    >>> parts = split(data, seed=0)
    >>> len(parts.train), len(parts.valid), len(parts.test)
    (28, 4, 8)
    """
    once = list({json.dumps(record, sort_keys=True): record for record in data}.values())
    found = Split([], list(valid or []), list(test or []), len(data) - len(once))
    rng = random.Random(seed)
    for groups in _groups_by_task(once).values():
        rng.shuffle(groups)
        n_test = 0 if test is not None else _part(len(groups), TEST_PART, MOST_TEST)
        n_valid = 0 if valid is not None else _part(len(groups), VALID_PART, MOST_VALID)
        for i, group in enumerate(groups):
            (found.test if i < n_test else found.valid if i < n_test + n_valid else found.train).extend(group)
    _check(found)
    return found


def _part(n: int, part: float, most: int) -> int:
    return min(most, max(1, round(part * n)))


def _check(found: Split) -> None:
    if len(found.train) + len(found.valid) < LEAST or not found.train:
        raise DataError(
            f"{len(found.train)} examples to train on and {len(found.valid)} to validate on, beside {len(found.test)} for the "
            f"report: at least {LEAST} without those are needed; give {round(LEAST / (1 - TEST_PART))} lines with prompt and "
            "response, or more"
        )
    for name, part in (("validate", found.valid), ("test", found.test)):
        if not part:
            raise DataError(f"there is nothing to {name} on: the file given for it is empty")
    seen = {record["prompt"] for record in found.train}
    if again := [record["prompt"] for record in found.test if record["prompt"] in seen]:
        raise DataError(f"--test has {len(again)} prompts that are trained on too, the first {again[0]!r:.60}: keep them apart")


def _groups_by_task(records: Sequence[Record]) -> dict[str, list[list[Record]]]:
    """The records of each prompt together, by the task of the first."""
    of_prompt: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        of_prompt[record["prompt"]].append(record)
    found: dict[str, list[list[Record]]] = defaultdict(list)
    for group in of_prompt.values():
        found[task_of(group[0])].append(group)
    return dict(sorted(found.items()))


def metrics(found: Split) -> list[str]:
    """How each task of the test examples is scored, as `first-cpp eval --metric` takes it: by words that agree where answers,
    those trained on too, are short.

    >>> metrics(Split([], [], [{"task": "colour", "prompt": "p", "response": "red"}]))
    ['colour=answer']
    """
    kinds, tested = [], {task_of(record) for record in found.test}
    words: dict[str, list[int]] = defaultdict(list)
    for record in (*found.train, *found.valid, *found.test):
        words[task_of(record)].append(len(words_apart(record["response"]).split()))
    for task, n_words in sorted(words.items()):
        if task in tested and task not in KNOWN_TASKS:
            n_words.sort()
            kinds.append(f"{task}={'answer' if n_words[len(n_words) // 2] <= SHORT_WORDS else 'summary'}")
    return kinds


def digest(records: Sequence[Record]) -> str:
    """A hash of what records say."""
    return hashlib.sha256(json.dumps(list(records), sort_keys=True).encode()).hexdigest()
