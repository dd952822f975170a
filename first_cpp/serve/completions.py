"""Answers that are made here and not by the base class: logprobs, echo, the usage of a stream, embeddings.

All of it runs in the worker thread. The base class pairs echoed tokens with the logits one position off, takes max_tokens=0 for
no limit, and sorts the whole vocabulary in Python for every logprob.
"""

from __future__ import annotations

import base64
import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from ..llama import Llama
from ..runtime.answer import Timing


@dataclass(frozen=True)
class Prompt:
    """A prompt in tokens. shown: its tokens as clients see them, without a BOS that they did not send."""

    tokens: list[int]
    shown: list[int]
    text: str

    @classmethod
    def of(cls, llm: Llama, given: str | list[int], tokens: list[int]) -> Prompt:
        """given: what the client sent. tokens: what is read for it."""
        if isinstance(given, str):
            return cls(tokens, tokens[1:] if tokens[:1] == [llm.token_bos()] else tokens, given)
        return cls(tokens, tokens, llm.detokenize(tokens, special=True).decode("utf-8", errors="ignore"))


def answer_completion(llm: Llama, kwargs: dict[str, Any], prompt: Prompt, n_usage: int | None) -> Any:
    """The answer to a completion request, or its chunks. n_usage: prompt tokens, where a stream is to end with its usage."""
    asked = {**kwargs, "prompt": prompt.tokens, "echo": False}
    if kwargs["max_tokens"] == 0:
        asked["max_tokens"] = 1  # 0 has no limit in the base class; the token is dropped again
    if kwargs["stream"]:
        chunks = _stream(llm.create_completion(**asked), prompt, kwargs)
        return chunks if n_usage is None else with_usage(chunks, llm, n_usage, nothing=kwargs["max_tokens"] == 0)
    answer = llm.create_completion(**{**asked, "logprobs": None})
    choice, usage = dict(answer["choices"][0]), dict(answer["usage"])
    made = answer_tokens(llm, len(prompt.tokens))
    if kwargs["max_tokens"] == 0:
        choice |= {"text": "", "finish_reason": "length"}
        usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
        made = []
    if choice["finish_reason"] == "stop":
        made = made[: n_shown(llm, made, choice["text"])]
    if kwargs["logprobs"] is not None:
        choice["logprobs"] = _logprobs(llm, prompt, made, kwargs["logprobs"], bool(kwargs["echo"]))
    if kwargs["echo"]:
        choice["text"] = prompt.text + choice["text"]
    return {**answer, "choices": [choice], "usage": usage}


def _stream(chunks: Iterator[dict[str, Any]], prompt: Prompt, kwargs: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
    shift = len(prompt.text) - len(prompt.tokens)  # the base class counts a prompt's tokens where it has no text
    first = True
    for chunk in chunks:
        choice = chunk["choices"][0]
        if first and kwargs["echo"]:
            yield {**chunk, "choices": [{**choice, "text": prompt.text, "logprobs": None, "finish_reason": None}]}
        first = False
        if kwargs["max_tokens"] == 0:
            if choice["finish_reason"] is None:
                yield None
                continue
            choice = {**choice, "text": "", "logprobs": None, "finish_reason": "length"}
        elif logprobs := choice["logprobs"]:
            choice = {**choice, "logprobs": {**logprobs, "text_offset": [n + shift for n in logprobs["text_offset"]]}}
        yield {**chunk, "choices": [choice]}


class MinTokens:
    """A logits processor that lets an answer end only once it has so many tokens, by any of the tokens that end answers:
    llama_cpp's knows of EOS alone.

    >>> llm = Llama("model.gguf", verbose=False)
    >>> answer = llm("Once", max_tokens=3, logits_processor=[MinTokens(llm, 3)], logit_bias={2: 1e4})
    >>> answer["usage"]["completion_tokens"]
    3
    """

    def __init__(self, llm: Llama, least: int) -> None:
        self._ends, self._least = list(llm.end_tokens), least
        self._n_prompt: int | None = None

    def __call__(self, tokens: npt.NDArray[np.intc], logits: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        if self._n_prompt is None:
            self._n_prompt = len(tokens)
        if len(tokens) - self._n_prompt < self._least:
            logits[self._ends] = -np.inf
        return logits


def answer_tokens(llm: Llama, n_prompt: int) -> list[int]:
    """The tokens of the answer that just ended, without one that ends answers."""
    made = [int(token) for token in llm.input_ids[n_prompt : llm.n_tokens]]
    timing = llm.timing or Timing()
    last = timing.last_token
    if last >= 0 and len(made) < timing.n_tokens and not is_end(llm, last):
        made.append(last)
    return made


def n_shown(llm: Llama, made: list[int], text: str) -> int:
    """How many of an answer's tokens its text is of: a stop that ended it is no part of it, nor are its tokens."""

    def length(n_tokens: int) -> int:
        return len(llm.detokenize(made[:n_tokens]).decode("utf-8", errors="ignore"))

    return bisect.bisect_left(range(len(made)), len(text), key=length)


def is_end(llm: Llama, token: int) -> bool:
    return bool(llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(llm.model), token))


def with_usage(
    chunks: Iterator[dict[str, Any] | None], llm: Llama, n_prompt: int, nothing: bool = False
) -> Iterator[dict[str, Any] | None]:
    """Chunks with an empty `usage`, and after them one that has it. nothing: no token of the answer was sent."""
    last: dict[str, Any] = {}
    for chunk in chunks:
        last = last if chunk is None else {**chunk, "usage": None}
        yield None if chunk is None else last
    timing = llm.timing or Timing()
    n = 0 if nothing else timing.n_tokens - (timing.n_tokens > 0 and is_end(llm, timing.last_token))
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n, "total_tokens": n_prompt + n}
    yield {**last, "choices": [], "usage": usage}


# -- logprobs ----------------------------------------------------------------------------------------------------------


def _logprobs(llm: Llama, prompt: Prompt, made: list[int], top: int, echo: bool) -> dict[str, Any]:
    """Of the answer's tokens, with `echo` after those of the prompt: the token at a position was predicted one before it."""
    tokens = [*prompt.tokens, *made]
    first = len(prompt.tokens) - len(prompt.shown) if echo else len(prompt.tokens)
    shown = tokens[first:]
    texts = [_text(llm, token) for token in shown]
    begin = 0 if echo else len(prompt.text)
    offsets = itertools.accumulate((len(text) for text in texts), initial=begin)
    rows = [_row(llm, position, tokens[position], top) for position in range(first, len(tokens))]
    return {
        "tokens": texts,
        "text_offset": list(offsets)[: len(texts)],
        "token_logprobs": [None if row is None else row[0] for row in rows],
        "top_logprobs": [None if row is None else row[1] for row in rows],
    }


def _row(llm: Llama, position: int, token: int, top: int) -> tuple[float, dict[str, float]] | None:
    """The logprob of a token at a position, and the highest there with its own; None where nothing came before it."""
    if position == 0:
        return None
    logprobs = log_softmax(llm.scores[position - 1])
    best = np.argpartition(logprobs, -top)[-top:] if top else np.empty(0, np.intp)
    best = best[np.argsort(-logprobs[best])]
    found = {_text(llm, int(i)): float(logprobs[i]) for i in best}
    found[_text(llm, token)] = float(logprobs[token])
    return float(logprobs[token]), found


def _text(llm: Llama, token: int) -> str:
    return llm.detokenize([token], special=True).decode("utf-8", errors="ignore")


def log_softmax(logits: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
    """float32 [n_vocab] to the same."""
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())  # type: ignore[no-any-return]


# -- embeddings --------------------------------------------------------------------------------------------------------


def embeddings(llm: Llama, texts: list[str], n_tokens: int, name: str, encoding: str) -> Iterator[dict[str, Any] | None]:
    """None after each text, so that the job can be cancelled, and in the end the answer."""
    data: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        values = np.asarray(llm.embed(text), np.float32)
        coded = base64.b64encode(values.tobytes()).decode() if encoding == "base64" else values.tolist()
        data.append({"object": "embedding", "embedding": coded, "index": index})
        yield None
    yield {"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens}}
