"""Training data without labels: the dense model's own answers, by llama.cpp, and prompts that it writes itself.

Both are kept beside the run, a JSON object a line, each under a key of what it depends on: a rerun goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cli.jsonl import DataError, field, lines, task_of
from ..errors import OptionError
from ..gguf.model_file import ModelFile, weights_fingerprint
from ..runtime.chat_prompt import chat_prompt, user_turn
from ..streams.engine import Engine, Floats, streams_for
from ..streams.quick_copy import quick_copy
from ..streams.together import Answer, answers_together
from .dense_outputs import N_TOP, Output, Outputs, most_probable
from .examples import Example
from .run_progress import Step
from .settings import Ask

ANSWERS, PROMPTS, COPY = "answers.jsonl", "prompts.jsonl", "answers.gguf"
MOST_PROMPT = 128
"""Tokens of a prompt that the model writes itself."""
LEAST_WORDS = 3
"""Of such a prompt."""
TRIES = 10
"""For each prompt wanted: a model that writes fewer usable ones is no help."""
AT_ONCE = 64
"""Of them."""
HEAT = 1.0
"""Temperature of such prompts."""


@dataclass(frozen=True)
class AskedPrompt:
    """A user's turn, and the kind of prompt it is."""

    text: str
    task: str = ""


class Kept:
    """A JSON Lines file of records by their key; a line that a kill left unfinished is dropped."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        if os.path.exists(path):
            with open(path, "rb+") as file:
                whole = [line for line in file if line.endswith(b"\n")]
                file.truncate(sum(map(len, whole)))
            self.found = {one["key"]: one for one in map(json.loads, whole)}

    def add(self, record: dict[str, Any]) -> dict[str, Any]:
        """Keep a record, at once."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.found[record["key"]] = record
        return record


def key_of(*of: object) -> str:
    """A hash of what a record depends on."""
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()


class DenseModel:
    """The model that answers. A quick copy, where one is worth it, is made once in `folder`, and is there until `close`."""

    def __init__(self, path: str, folder: str, n_threads: int) -> None:
        self.path, self.folder, self._n_threads = path, folder, n_threads
        self._copies = contextlib.ExitStack()
        self._quick: str | None = None

    @contextlib.contextmanager
    def opened(self, n_ctx: int) -> Iterator[Engine]:
        """Loaded, with room for a prompt and its answer of `n_ctx` tokens in each stream."""
        model = ModelFile.open(self.path)
        room = min(n_ctx, model.context_length)
        if self._quick is None:
            copy = quick_copy(model, os.path.join(self.folder, COPY), lambda _text: None)
            self._quick = self._copies.enter_context(copy)
        with contextlib.closing(Engine(self._quick, room, self._n_threads, streams_for(room))) as engine:
            yield engine

    def close(self) -> None:
        """Remove the copy."""
        self._copies.close()
        self._quick = None


def read_prompts(paths: Sequence[str]) -> list[AskedPrompt]:
    """The prompts of JSON Lines files, each once; a line needs no response.

    Raises DataError naming file and line, MissingFileError for a file that is not there.
    """
    found = [
        AskedPrompt(field(record, "prompt", where), task_of(record, where)) for path in paths for where, record in lines(path)
    ]
    if not found:
        raise DataError(f"no prompts in {', '.join(paths)}")
    return list(dict.fromkeys(found))


def dense_answers(model: DenseModel, prompts: Sequence[AskedPrompt], ask: Ask, n_ctx: int, step: Step) -> list[dict[str, Any]]:
    """The dense model's answers to prompts: records with task, prompt, prompt_tokens, tokens, end (the token with which the
    model ended the answer, or None) and what the model gave each of these (`Outputs.packed`).

    Those in the file of the model's folder are taken from there. A prompt that leaves no room for an answer is dropped.
    """
    kept, wanted = Kept(os.path.join(model.folder, ANSWERS)), _wanted(model.path, prompts, ask)
    missing = [one for one in wanted if one[1] not in kept.found]
    if missing:
        with model.opened(n_ctx) as engine:
            for done, record in enumerate(_answered(engine, missing, ask), len(wanted) - len(missing) + 1):
                kept.add(record)
                step(done, len(wanted))
    step(len(wanted), len(wanted))
    return [kept.found[key] for _, key in wanted]


def _wanted(model: str, prompts: Sequence[AskedPrompt], ask: Ask) -> list[tuple[AskedPrompt, str]]:
    """The answers that are wanted: prompt and key."""
    of = weights_fingerprint(model)
    settings = [N_TOP, ask.max_tokens] if ask.n == 0 else [N_TOP, ask.max_tokens, ask.temperature, ask.seed]
    numbers = range(max(1, ask.n))
    return [(prompt, key_of(of, settings, prompt.text, number)) for prompt in prompts for number in numbers]


def unanswered(model: DenseModel, prompts: Sequence[AskedPrompt], ask: Ask) -> list[AskedPrompt]:
    """The prompts that the file of the model's folder has not all answers to."""
    kept = Kept(os.path.join(model.folder, ANSWERS))
    return list(dict.fromkeys(prompt for prompt, key in _wanted(model.path, prompts, ask) if key not in kept.found))


def n_written(folder: str) -> int:
    """Usable prompts in the folder's file of those that a model wrote itself."""
    kept = Kept(os.path.join(folder, PROMPTS)).found.values()
    return len({" ".join(one["text"].split()) for one in kept if one["ended"] and is_usable(one["text"])})


def _answered(engine: Engine, wanted: Sequence[tuple[AskedPrompt, str]], ask: Ask) -> Iterator[dict[str, Any]]:
    """The records of prompts and keys, as the answers are done; an empty answer where a prompt leaves no room for one."""
    tokens = [chat_prompt(engine, prompt.text) for prompt, _ in wanted]
    outputs: list[list[Output]] = [[] for _ in wanted]
    draws = [Draw(ask.temperature, key) for _, key in wanted] if ask.n else None
    fits = [i for i, one in enumerate(tokens) if len(one) + 2 <= engine.room]

    def choose(number: int, logits: Floats) -> int:
        output = most_probable(logits)
        outputs[fits[number]].append(output)
        return int(output[0][0]) if draws is None else draws[fits[number]](logits)

    def record(i: int, answer: Answer) -> dict[str, Any]:
        (prompt, key), own, outputs[i] = wanted[i], Outputs.stack(outputs[i]), []
        text = engine.detokenize(answer.tokens).decode("utf-8", "replace")
        asked = {"key": key, "task": prompt.task, "prompt": prompt.text, "prompt_tokens": tokens[i]}
        return {**asked, "response": text, "tokens": answer.tokens, "end": answer.end, **own.packed()}

    yield from (record(i, Answer()) for i in sorted({*range(len(wanted))} - {*fits}))
    for number, answer in answers_together(engine, [tokens[i] for i in fits], ask.max_tokens, choose):
        yield record(fits[number], answer)


class Draw:
    """Draws tokens from a model's whole distribution, the same ones for the same key."""

    def __init__(self, temperature: float, key: str) -> None:
        self._temperature, self._rng = temperature, np.random.default_rng(int(key, 16))

    def __call__(self, logits: Floats) -> int:
        """A token, for logits [n_vocab]."""
        scaled = logits.astype(np.float64) / self._temperature
        sums = np.exp(scaled - scaled.max()).cumsum()
        return int(min(np.searchsorted(sums, self._rng.random() * sums[-1], side="right"), len(sums) - 1))


def own_prompts(model: DenseModel, n: int, seed: int, step: Step) -> list[AskedPrompt]:
    """`n` prompts that an instruct model writes: what it says where its chat template has the user speak.

    Duplicates and broken ones are dropped. Those in the file of the model's folder are taken from there. Raises OptionError for
    a model without a chat template, DataError for one that writes too few usable ones.
    """
    if "tokenizer.chat_template" not in ModelFile.open(model.path).first.keys():
        raise OptionError(f"--prompts self: {model.path} has no chat template, so it cannot write a user's turn; give prompts")
    kept, of, found = Kept(os.path.join(model.folder, PROMPTS)), weights_fingerprint(model.path), dict[str, None]()
    keys = [key_of(of, seed, number) for number in range(TRIES * n)]
    with contextlib.ExitStack() as stack:
        engine = None
        for first in range(0, len(keys), AT_ONCE):
            wave = keys[first : first + AT_ONCE]
            if missing := [key for key in wave if key not in kept.found]:
                engine = engine or stack.enter_context(model.opened(2 * MOST_PROMPT))
                for key, text, ended in written(engine, missing):
                    kept.add({"key": key, "text": text, "ended": ended})
            for one in (kept.found[key] for key in wave):
                if len(found) < n and one["ended"] and is_usable(one["text"]):
                    found.setdefault(" ".join(one["text"].split()))
            step(len(found), n)
            if len(found) == n:
                return [AskedPrompt(text) for text in found]
    raise DataError(
        f"--prompts self: the model wrote {len(found)} usable prompts in {TRIES * n} tries, {n} are wanted (--limit)"
    )


def written(engine: Engine, keys: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """What a model writes where its chat template has the user speak, for each key, and whether it ended it."""
    turn, draws = user_turn(engine), [Draw(HEAT, key) for key in keys]
    for number, one in answers_together(engine, [turn] * len(keys), MOST_PROMPT, lambda i, logits: draws[i](logits)):
        yield keys[number], engine.detokenize(one.tokens).decode("utf-8", "replace"), one.end is not None


def is_usable(text: str) -> bool:
    """Whether a text that a model wrote can be a prompt: some words, all of them text, none of a template's marks.

    >>> is_usable("What is the capital of France?"), is_usable("What"), is_usable("<|im_start|>user hello there you")
    (True, False, False)
    """
    whole = all(sign.isprintable() or sign in "\n\t" for sign in text) and "\N{REPLACEMENT CHARACTER}" not in text
    words = text.split()
    varied = len(set(words)) * 3 >= len(words)  # one that repeats itself says little
    return whole and varied and len(words) >= LEAST_WORDS and "<|" not in text and "|>" not in text


def as_examples(records: Sequence[dict[str, Any]], max_prompt: int) -> list[Example]:
    """Examples to train on, in llama.cpp's tokens: what the model read and chose, the end token too where it ended an answer.

    Empty answers and prompts of more than `max_prompt` tokens are dropped. Raises DataError where nothing is left.
    """
    found = []
    for one in records:
        response = one["tokens"] if one["end"] is None else [*one["tokens"], one["end"]]
        if one["tokens"] and len(one["prompt_tokens"]) <= max_prompt:
            found.append(Example(one["task"], one["prompt_tokens"], response, outputs=Outputs.unpacked(one)))
    if not found:
        raise DataError(
            f"the dense model answered none of {len(records)} prompts, or all are longer than --max-prompt {max_prompt}"
        )
    return found


def what_is_dropped(records: Sequence[dict[str, Any]], max_prompt: int) -> str:
    """What `as_examples` leaves of records unlearned, in a line; empty where it is nothing.

    >>> one = {"prompt_tokens": [1, 2], "tokens": [3]}
    >>> what_is_dropped([one, one | {"tokens": []}, one | {"prompt_tokens": [1] * 9}], max_prompt=4)
    '2 of 3 answers are not learned: 1 to a prompt longer than --max-prompt 4, 1 empty'
    >>> what_is_dropped([one], max_prompt=4)
    ''
    """
    n_long = sum(len(one["prompt_tokens"]) > max_prompt for one in records)
    n_empty = sum(not one["tokens"] and len(one["prompt_tokens"]) <= max_prompt for one in records)
    if not n_long + n_empty:
        return ""
    why = [f"{n_long:,} to a prompt longer than --max-prompt {max_prompt}"] * (n_long > 0) + [f"{n_empty:,} empty"] * (
        n_empty > 0
    )
    return f"{n_long + n_empty:,} of {len(records):,} answers are not learned: {', '.join(why)}"
