"""Reasoning apart from the answer: what a model writes between its marks, <think>...</think> and the like, as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..llama import Llama
from .tool_calls import with_delta, without_logprobs

MARKS = (
    ("<think>", "</think>"),  # DeepSeek, Qwen, SmolLM3 and most others
    ("[THINK]", "[/THINK]"),  # Mistral
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
)
_TEMPLATE = "tokenizer.chat_template"
REASONING, ANSWER = "reasoning_content", "content"


@dataclass(frozen=True)
class Thinking:
    """How a model marks its reasoning. inside: the prompt has opened it, so the answer begins within."""

    opening: str
    closing: str
    inside: bool = False

    @classmethod
    def of(cls, llm: Llama, prompt: str | list[int]) -> Thinking | None:
        """The marks that the model's chat template knows, None where it knows none. prompt: what the answer is to."""
        template = llm.metadata.get(_TEMPLATE, "")
        for opening, closing in MARKS:
            if closing in template:
                tail = prompt[-100:] if isinstance(prompt, str) else _text(llm, prompt[-20:])
                return cls(opening, closing, tail.rstrip().endswith(opening))
        return None


def _text(llm: Llama, tokens: list[int]) -> str:
    return llm.detokenize(tokens, special=True).decode("utf-8", "ignore")


class ReasoningReader:
    """Parts an answer that comes in pieces; white space around the reasoning is dropped.

    >>> reader = ReasoningReader(Thinking("<think>", "</think>"))
    >>> reader.feed("<think>Two and two.</thi"), reader.feed("nk>Four")
    ([('reasoning_content', 'Two and two.')], [('content', 'Four')])
    """

    def __init__(self, thinking: Thinking) -> None:
        self._marks = thinking
        self._where = "reasoning" if thinking.inside else "start"
        self._held = ""
        self._fresh = True  # nothing of this part has come yet

    def feed(self, text: str) -> list[tuple[str, str]]:
        """What is known now: pairs of REASONING or ANSWER and text."""
        self._held += text
        return list(self._known(final=False))

    def finish(self) -> list[tuple[str, str]]:
        """The rest: the answer has ended."""
        return list(self._known(final=True))

    def _known(self, final: bool) -> Iterator[tuple[str, str]]:
        if self._where == "start" and not self._leave_start(final):
            return
        if self._where == "reasoning":
            before, mark, after = self._held.partition(self._marks.closing)
            kept = 0 if mark or final else _begun(before, self._marks.closing)
            known = before[: len(before) - kept] if not (mark or final) else before.rstrip()
            yield from self._part(REASONING, known)
            self._held = before[len(known) :] if not mark else after
            if not mark:
                return
            self._where, self._fresh = "answer", True
        yield from self._part(ANSWER, self._held)
        self._held = ""

    def _leave_start(self, final: bool) -> bool:
        begun = self._held.lstrip()
        if begun.startswith(self._marks.opening):
            self._where, self._held = "reasoning", begun.removeprefix(self._marks.opening)
        elif not final and self._marks.opening.startswith(begun):
            return False
        else:
            self._where, self._fresh = "answer", False
        return True

    def _part(self, kind: str, text: str) -> Iterator[tuple[str, str]]:
        text = text.lstrip() if self._fresh else text
        if text:
            self._fresh = False
            yield kind, text


def _begun(text: str, mark: str) -> int:
    """How many characters at the end may be white space before the mark, and its beginning."""
    n = next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
    rest = text[: len(text) - n]
    return n + len(rest) - len(rest.rstrip())


def with_reasoning(answer: dict[str, Any], thinking: Thinking) -> dict[str, Any]:
    """A whole answer with its reasoning in a field of its own."""
    choice = answer["choices"][0]
    reader = ReasoningReader(thinking)
    parts = reader.feed(choice["message"]["content"] or "") + reader.finish()
    found = {kind: "".join(text for of, text in parts if of == kind) for kind in (REASONING, ANSWER)}
    if not found[REASONING]:
        found = {ANSWER: found[ANSWER]}
    return {**answer, "choices": [{**choice, "message": {**choice["message"], **found}}]}


def stream_with_reasoning(chunks: Iterator[dict[str, Any]], thinking: Thinking) -> Iterator[dict[str, Any] | None]:
    """The chunks of an answer, reasoning in a field of its own; None for text that is held back."""
    reader = ReasoningReader(thinking)
    for chunk in chunks:
        choice = chunk["choices"][0]
        content, last = choice["delta"].get("content"), choice["finish_reason"] is not None
        if not content and not last:
            yield chunk
            continue
        parts = reader.feed(content or "") + (reader.finish() if last else [])
        rest = chunk
        for kind, text in parts:
            yield with_delta(rest, {kind: text})
            rest = without_logprobs(rest)
        if last:
            yield with_delta(rest, {}, choice["finish_reason"])
        elif not parts:
            yield with_delta(chunk, {}) if choice.get("logprobs") else None
