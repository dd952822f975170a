"""The examples to train on: JSON Lines with `prompt` and `response`, checked before training starts."""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..cli.jsonl import DataError, field, lines, task_of
from ..runtime.predicted_cost import Prediction
from .dense_outputs import Outputs


@dataclass(frozen=True)
class Example:
    """The tokens of one prompt, in the model's chat template, and of its answer, the end token included.

    prediction: what a file's sets of layers are predicted to cost it, where a run trains for those. outputs: what the dense
    model gave the tokens of its response, where it was asked.

    >>> Example("qa", prompt=[1, 15, 27], response=[42, 2]).task
    'qa'
    """

    task: str
    prompt: list[int]
    response: list[int]
    prediction: Prediction | None = None
    outputs: Outputs | None = dataclasses.field(default=None, compare=False, repr=False)


def read_examples(paths: Sequence[str], tokenizer: Any, max_prompt: int, max_response: int) -> list[Example]:
    """Read, check and tokenise all lines of `paths`. max_prompt, max_response: in tokens.

    Raises DataError naming file and line for what is not JSON, not UTF-8, lacks a field, has an empty response, or whose
    prompt or response has more tokens than allowed, and for a tokenizer without an end token; MissingFileError for a file that
    is not there.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("the model's tokenizer has no end token (eos_token), with which the responses are to end")
    examples = []
    for path in paths:
        for where, record in lines(path):
            prompt = encode_prompt(tokenizer, field(record, "prompt", where))
            response = tokenizer(field(record, "response", where), add_special_tokens=False)["input_ids"]
            for name, tokens, limit in (("prompt", prompt, max_prompt), ("response", response, max_response - 1)):
                if len(tokens) > limit:
                    raise DataError(f"{where}: the {name} has {len(tokens)} tokens, at most {limit} are allowed (--max-{name})")
            examples.append(Example(task_of(record, where), prompt, [*response, tokenizer.eos_token_id]))
    if not examples:
        raise DataError(f"no examples in {', '.join(paths)}")
    return examples


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a user's turn, up to where the answer begins; plain text for a tokenizer without a chat template."""
    if tokenizer.chat_template is None:
        return list(tokenizer(text)["input_ids"])
    turn = [{"role": "user", "content": text}]
    return list(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))


class OfTask(Protocol):
    """What belongs to a task."""

    @property
    def task(self) -> str: ...


Drawn = TypeVar("Drawn", bound=OfTask)


def draw(examples: Sequence[Drawn], limit: int | None, seed: int) -> list[Drawn]:
    """At most `limit` examples drawn at random, equally many of each task as far as it has them; None draws all.

    >>> found = draw([Example("a", [i], [2]) for i in range(9)] + [Example("b", [9], [2])], 4, seed=0)
    >>> sorted(example.task for example in found)
    ['a', 'a', 'a', 'b']
    """
    if limit is None or limit >= len(examples):
        return list(examples)
    shuffled = random.Random(seed).sample(list(examples), len(examples))
    seen: dict[str, int] = defaultdict(int)
    turns = []
    for i, example in enumerate(shuffled):
        turns.append((seen[example.task], i))
        seen[example.task] += 1
    return [shuffled[i] for _, i in sorted(turns)[:limit]]


def batches(examples: Sequence[Example], size: int, seed: int, epoch: int) -> list[list[Example]]:
    """One epoch in batches of examples of similar length, in an order that seed and epoch alone decide."""
    rng = random.Random(f"{seed}-{epoch}")
    order = list(range(len(examples)))
    rng.shuffle(order)
    bucket = size * 32  # sorted by length within a bucket: little padding, still random
    found = []
    for start in range(0, len(order), bucket):
        part = sorted(order[start : start + bucket], key=lambda i: padding_cost(examples[i]))
        found += [[examples[i] for i in part[j : j + size]] for j in range(0, len(part), size)]
    rng.shuffle(found)
    return found


def padding_cost(example: Example) -> int:
    """The work of padding to this example's length: answers are read several times, with gradients, prompts once."""
    return len(example.prompt) + 8 * len(example.response)


def micro_batches(examples: Sequence[Example], n_tokens: int) -> list[list[Example]]:
    """The examples, in their order, in groups of at most `n_tokens` tokens, padding included, or of one example.

    >>> a, b, c = (Example("qa", [1] * n, [2]) for n in (3, 4, 9))
    >>> [len(group) for group in micro_batches([a, b, c], 12)]
    [2, 1]
    """
    groups: list[list[Example]] = []
    for example in examples:
        grown = [*groups[-1], example] if groups else []
        longest = max((len(e.prompt) for e in grown), default=0) + max((len(e.response) for e in grown), default=0)
        if grown and len(grown) * longest <= n_tokens:
            groups[-1] = grown
        else:
            groups.append([example])
    return groups
