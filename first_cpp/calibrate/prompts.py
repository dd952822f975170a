"""The prompts that a model is calibrated on: the user's own, or some 300 of ours, everyday kinds in several languages."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ..cli.jsonl import DataError, field, lines, task_of
from ..errors import MissingFileError
from ..gguf.model_file import normal_path

OURS = os.path.join(os.path.dirname(__file__), "prompts.jsonl")


@dataclass(frozen=True)
class Prompt:
    """A user's turn, and the kind of prompt it is, empty where nobody said."""

    text: str
    task: str = ""


def read_prompts(path: str | None = None) -> list[Prompt]:
    """The prompts of a file, each once; without a file the built-in ones.

    JSON Lines with `prompt`, perhaps `task`, where its name ends in .jsonl, else text with one a line.
    Raises MissingFileError, or DataError naming the line.

    >>> len({prompt.task for prompt in read_prompts()}) > 15
    True
    """
    path = OURS if path is None else normal_path(path)
    found = _from_jsonl(path) if path.endswith(".jsonl") else _from_text(path)
    if not found:
        raise DataError(f"{path} has no prompts; one a line is expected, or JSON Lines with `prompt`")
    return list(dict.fromkeys(found))


def _from_jsonl(path: str) -> list[Prompt]:
    return [Prompt(field(record, "prompt", where), task_of(record, where)) for where, record in lines(path)]


def _from_text(path: str) -> list[Prompt]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [Prompt(line.strip()) for line in file if line.strip()]
    except FileNotFoundError:
        raise MissingFileError(f"data file does not exist: {path}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def in_turns(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """Shuffled so that the first ones, however many, have every task in equal parts as far as there are enough."""
    tasks: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        tasks[prompt.task].append(prompt)
    rng = random.Random(seed)
    placed = []
    for task in sorted(tasks):
        rng.shuffle(tasks[task])
        start = rng.random()
        placed += [((i + start) / len(tasks[task]), prompt) for i, prompt in enumerate(tasks[task])]
    return [prompt for _, prompt in sorted(placed, key=lambda one: one[0])]


def is_kept_out(prompts: Sequence[Prompt]) -> list[bool]:
    """Every fourth prompt of each task is kept out of all fits, in the order given; of all together where tasks are small.

    The tasks begin at different ones of the four: of the first prompts, however few, about a quarter is kept out.

    >>> is_kept_out([Prompt("how", task) for task in "abcdabcd"])
    [False, False, False, True, False, False, True, False]
    """
    seen: dict[str, int] = {}
    kept = []
    for prompt in prompts:
        seen.setdefault(prompt.task, len(seen) % 4)
        kept.append(seen[prompt.task] % 4 == 3)
        seen[prompt.task] += 1
    return kept if 6 * sum(kept) >= len(kept) else [i % 4 == 3 for i in range(len(kept))]
