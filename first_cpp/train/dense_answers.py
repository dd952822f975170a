"""Training data without labels: the dense model's own answers, by llama.cpp, and prompts that it writes itself.

Both are kept beside the run, a JSON object a line, each under a key of what it depends on: a rerun goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp

from ..cli.jsonl import DataError, field, lines
from ..errors import OptionError
from ..gguf.model_file import ModelFile
from ..runtime.chat_prompt import chat_prompt, user_turn
from ..runtime.greedy import answer_tokens, context_size
from .dense_outputs import N_TOP, Output, Outputs, last_output
from .examples import Example
from .run_progress import Step
from .settings import Ask

ANSWERS, PROMPTS = "answers.jsonl", "prompts.jsonl"
MOST_PROMPT = 128
"""Tokens of a prompt that the model writes itself."""
LEAST_WORDS = 3
"""Of such a prompt."""
TRIES = 10
"""For each prompt wanted: a model that writes fewer usable ones is no help."""
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


def model_key(path: str) -> list[object]:
    """What tells a model's file apart, its quantisation too."""
    model = ModelFile.open(path)
    return [model.fingerprint, [os.path.getsize(part) for part in model.paths]]


@contextlib.contextmanager
def dense_model(path: str, n_ctx: int, n_threads: int) -> Iterator[llama_cpp.Llama]:
    """The model as it is, in stock llama_cpp."""
    model = llama_cpp.Llama(
        path,
        n_ctx=min(n_ctx, ModelFile.open(path).context_length),
        n_threads=n_threads,
        n_threads_batch=n_threads,
        verbose=False,
    )
    with contextlib.closing(model):
        yield model


def read_prompts(paths: Sequence[str]) -> list[AskedPrompt]:
    """The prompts of JSON Lines files, each once; a line needs no response.

    Raises DataError naming file and line, MissingFileError for a file that is not there.
    """
    found = [
        AskedPrompt(field(record, "prompt", where), str(record.get("task", "")))
        for path in paths
        for where, record in lines(path)
    ]
    if not found:
        raise DataError(f"no prompts in {', '.join(paths)}")
    return list(dict.fromkeys(found))


def dense_answers(
    model: str, prompts: Sequence[AskedPrompt], ask: Ask, folder: str, n_ctx: int, n_threads: int, step: Step
) -> list[dict[str, Any]]:
    """The dense model's answers to prompts: records with task, prompt, prompt_tokens, tokens, end (the token with which the
    model ended the answer, or None) and what the model gave each of these (`Outputs.packed`).

    Those in the folder's file are taken from there. A prompt that leaves no room for an answer is dropped.
    """
    kept, wanted = Kept(os.path.join(folder, ANSWERS)), _wanted(model, prompts, ask)
    missing = [one for one in wanted if one[2] not in kept.found]
    with contextlib.ExitStack() as stack:
        llm = stack.enter_context(dense_model(model, n_ctx, n_threads)) if missing else None
        for done, (prompt, number, key) in enumerate(missing, len(wanted) - len(missing)):
            assert llm is not None
            step(done, len(wanted))
            tokens = chat_prompt(llm, prompt.text)
            fits = len(tokens) + 2 <= context_size(llm)
            one = _answer(llm, tokens, ask, number) if fits else Answer()
            text = llm.detokenize(one.tokens).decode("utf-8", "replace")
            record = {"key": key, "task": prompt.task, "prompt": prompt.text, "response": text, "prompt_tokens": tokens}
            kept.add({**record, "tokens": one.tokens, "end": one.end, **one.packed()})
    step(len(wanted), len(wanted))
    return [kept.found[key] for _, _, key in wanted]


def _wanted(model: str, prompts: Sequence[AskedPrompt], ask: Ask) -> list[tuple[AskedPrompt, int, str]]:
    """The answers that are wanted: prompt, number and key."""
    of = model_key(model)
    settings = [N_TOP, ask.max_tokens] if ask.n == 0 else [N_TOP, ask.max_tokens, ask.temperature, ask.seed]
    return [
        (prompt, number, key_of(of, settings, prompt.text, number)) for prompt in prompts for number in range(max(1, ask.n))
    ]


def unanswered(model: str, prompts: Sequence[AskedPrompt], ask: Ask, folder: str) -> list[AskedPrompt]:
    """The prompts that the folder's file has not all answers to."""
    kept = Kept(os.path.join(folder, ANSWERS))
    return list(dict.fromkeys(prompt for prompt, _, key in _wanted(model, prompts, ask) if key not in kept.found))


def n_written(folder: str) -> int:
    """Usable prompts in the folder's file of those that a model wrote itself."""
    kept = Kept(os.path.join(folder, PROMPTS)).found.values()
    return len({" ".join(one["text"].split()) for one in kept if one["ended"] and is_usable(one["text"])})


@dataclass
class Answer:
    """Tokens of one answer, the token with which the model ended it, and the output at each of these."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    end: int | None = None
    outputs: list[Output] = dataclasses.field(default_factory=list)

    def packed(self) -> dict[str, object]:
        """The outputs, for a record; nothing of an empty answer."""
        return Outputs.stack(self.outputs).packed() if self.tokens else {}


def _answer(llm: llama_cpp.Llama, prompt: list[int], ask: Ask, number: int) -> Answer:
    """One answer; it ends where the model ends it, at `max_tokens` or with the context."""
    if ask.n > 0:
        return _drawn(llm, prompt, ask.max_tokens, ask.temperature, ask.seed + number, functools.partial(last_output, llm))
    one, tokens = Answer(), answer_tokens(llm, prompt, ask.max_tokens)
    while True:
        try:
            token, _ = next(tokens)
        except StopIteration as stop:
            if stop.value:
                one.outputs.append(last_output(llm))
                one.end = int(one.outputs[-1][0][0])  # the most probable one: answers are greedy
            return one
        one.tokens.append(token)
        one.outputs.append(last_output(llm))


def _drawn(
    llm: llama_cpp.Llama,
    prompt: list[int],
    most: int,
    temperature: float,
    seed: int,
    output: Callable[[], Output] | None = None,
) -> Answer:
    """An answer drawn from the model's whole distribution. output: what the model gave the next token, where it is wanted."""
    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    most = min(most, context_size(llm) - len(prompt) - 1)
    one = Answer()
    llm.set_seed(seed)
    tokens = llm.generate(prompt, temp=temperature, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
    with contextlib.closing(tokens):
        for token in tokens:
            if output is not None:
                one.outputs.append(output())
            if llama_cpp.llama_vocab_is_eog(vocabulary, token):
                one.end = int(token)
                break
            one.tokens.append(int(token))
            if len(one.tokens) >= most:
                break
    return one


def own_prompts(model: str, n: int, seed: int, folder: str, n_threads: int, step: Step) -> list[AskedPrompt]:
    """`n` prompts that an instruct model writes: what it says where its chat template has the user speak.

    Duplicates and broken ones are dropped. Those in the folder's file are taken from there. Raises OptionError for a model
    without a chat template, DataError for one that writes too few usable ones.
    """
    kept, of, found = Kept(os.path.join(folder, PROMPTS)), model_key(model), dict[str, None]()
    if "tokenizer.chat_template" not in ModelFile.open(model).first.keys():
        raise OptionError(f"--prompts self: {model} has no chat template, so it cannot write a user's turn; give prompts")
    with contextlib.ExitStack() as stack:
        llm = None
        for number in range(TRIES * n):
            if len(found) == n:
                break
            step(len(found), n)
            key = key_of(of, seed, number)
            if key not in kept.found:
                llm = llm or stack.enter_context(dense_model(model, 1024, n_threads))
                turn = _drawn(llm, user_turn(llm), MOST_PROMPT, HEAT, seed + number)
                kept.add(
                    {"key": key, "text": llm.detokenize(turn.tokens).decode("utf-8", "replace"), "ended": turn.end is not None}
                )
            one = kept.found[key]
            if one["ended"] and is_usable(one["text"]):
                found.setdefault(" ".join(one["text"].split()))
    step(len(found), n)
    if len(found) < n:
        raise DataError(
            f"--prompts self: the model wrote {len(found)} usable prompts in {TRIES * n} tries, {n} are wanted (--limit)"
        )
    return [AskedPrompt(text) for text in found]


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
