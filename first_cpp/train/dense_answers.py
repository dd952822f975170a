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

import llama_cpp

from ..cli.jsonl import DataError, field, lines
from ..errors import OptionError
from ..gguf.model_file import ModelFile
from ..runtime.chat_prompt import chat_prompt, user_turn
from ..runtime.greedy import answer_timed, context_size
from .examples import Example, encode_prompt
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
    """The dense model's answers to prompts: records with task, prompt, tokens (the end token not among them) and ended.

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
            found, ended = _answer(llm, tokens, ask, number) if fits else ([], False)
            text = llm.detokenize(found).decode("utf-8", "replace")
            kept.add(
                {"key": key, "task": prompt.task, "prompt": prompt.text, "response": text, "tokens": found, "ended": ended}
            )
    step(len(wanted), len(wanted))
    return [kept.found[key] for _, _, key in wanted]


def _wanted(model: str, prompts: Sequence[AskedPrompt], ask: Ask) -> list[tuple[AskedPrompt, int, str]]:
    """The answers that are wanted: prompt, number and key."""
    of = model_key(model)
    settings = [ask.max_tokens] if ask.n == 0 else [ask.max_tokens, ask.temperature, ask.seed]
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


def _answer(llm: llama_cpp.Llama, prompt: list[int], ask: Ask, number: int) -> tuple[list[int], bool]:
    """Tokens of one answer, and whether the model ended it."""
    if ask.n == 0:
        one = answer_timed(llm, prompt, ask.max_tokens)
        return one.tokens, one.ended
    return _drawn(llm, prompt, ask.max_tokens, ask.temperature, ask.seed + number)


def _drawn(llm: llama_cpp.Llama, prompt: list[int], most: int, temperature: float, seed: int) -> tuple[list[int], bool]:
    """Tokens drawn from the model's whole distribution, and whether it ended them."""
    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    most = min(most, context_size(llm) - len(prompt) - 1)
    found: list[int] = []
    llm.set_seed(seed)
    tokens = llm.generate(prompt, temp=temperature, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
    with contextlib.closing(tokens):
        for token in tokens:
            if llama_cpp.llama_vocab_is_eog(vocabulary, token):
                return found, True
            found.append(int(token))
            if len(found) >= most:
                break
    return found, False


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
                tokens, ended = _drawn(llm, user_turn(llm), MOST_PROMPT, HEAT, seed + number)
                kept.add({"key": key, "text": llm.detokenize(tokens).decode("utf-8", "replace"), "ended": ended})
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


def as_examples(records: Sequence[dict[str, Any]], tokenizer: Any, max_prompt: int) -> list[Example]:
    """Examples to train on: answers in the tokens that the model chose, and its end token where it ended them.

    Empty answers and prompts of more than `max_prompt` tokens are dropped. Raises DataError where nothing is left.
    """
    found = []
    for one in records:
        prompt = encode_prompt(tokenizer, one["prompt"])
        response = [*one["tokens"], *([tokenizer.eos_token_id] if one["ended"] else [])]
        if one["tokens"] and len(prompt) <= max_prompt:
            found.append(Example(one["task"], prompt, response))
    if not found:
        raise DataError(
            f"the dense model answered none of {len(records)} prompts, or all are longer than --max-prompt {max_prompt}"
        )
    return found
