"""Tool calls in what a model wrote, found while it writes, and sent to clients as calls.

    Hermes, Qwen      <tool_call>{"name": "f", "arguments": {...}}</tool_call>, once or several times, amid text
    Llama 3           <|python_tag|> or nothing, then {"name": "f", "parameters": {...}}; several are parted by ;
    Mistral           [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]
    Mistral, newer    [TOOL_CALLS]f[ARGS]{...}, once or several times

The marks of Llama and Mistral are control tokens, which an answer's text has not: what is left without them is found as well,
where it is the whole answer.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TO_THE_END = ("[TOOL_CALLS]", "<|python_tag|>")
_MARKS = (_OPEN, *_TO_THE_END)
_NAME = re.compile(r"(?P<name>[\w.-]+)\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\]\s*)?(?=\{)")
_BETWEEN = re.compile(r"(?:[\s;,]|\[TOOL_CALLS\]|<\|python_tag\|>)+")
_LIST = re.compile(r"\[\s*(\{|$)")
_AFTER_NAME = re.compile(r"\s*(\{|$)|\[(ARGS|CALL_ID|$)")


@dataclass(frozen=True)
class Call:
    """A call of a tool. arguments: as JSON text."""

    name: str
    arguments: str

    def as_json(self) -> dict[str, Any]:
        """As OpenAI's answers have it, under an id of its own."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}


class CallReader:
    """Finds calls in an answer that comes in pieces. names: of the tools there are; what calls no tool of these is text.

    >>> reader = CallReader(["add"])
    >>> reader.feed('Sure. <tool_call>{"name": "add", ')
    ['Sure. ']
    >>> reader.feed('"arguments": {"a": 1}}</tool_call>')
    [Call(name='add', arguments='{"a": 1}')]
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._held = ""
        self._begun = False  # whether there was anything but white space
        self._after_call = False

    def feed(self, text: str) -> list[str | Call]:
        """What is known now: texts, and whole calls."""
        self._held += text
        return list(self._known(final=False))

    def finish(self) -> list[str | Call]:
        """The rest: the answer has ended."""
        return list(self._known(final=True))

    def _known(self, final: bool) -> Iterator[str | Call]:
        while self._held:
            if not self._begun and _may_be_bare(self._held.strip(), self._names):
                if final:
                    yield from self._take_bare()
                return
            mark, at = _first_mark(self._held)
            if mark is None:
                kept = 0 if final else _length_of_begun_mark(self._held)
                yield from self._take_text(len(self._held) - kept)
                return
            yield from self._take_text(at)
            if mark != _OPEN and not final:
                return
            closed = self._held.find(_CLOSE)
            if mark == _OPEN and closed < 0 and not final:
                return
            end = closed + len(_CLOSE) if mark == _OPEN and closed >= 0 else len(self._held)
            yield from self._take_marked(end, mark)

    def _take_text(self, length: int) -> Iterator[str]:
        text, self._held = self._held[:length], self._held[length:]
        if self._after_call:  # white space between calls says nothing
            text = text.lstrip()
            self._after_call = not text
        self._begun = self._begun or bool(text.strip())
        if text:
            yield text

    def _take_marked(self, end: int, mark: str) -> Iterator[str | Call]:
        whole, self._held = self._held[:end], self._held[end:]
        self._begun = self._after_call = True
        yield from calls_or_text(whole.removeprefix(mark).removesuffix(_CLOSE), self._names, whole)

    def _take_bare(self) -> Iterator[str | Call]:
        whole, self._held = self._held, ""
        yield from calls_or_text(whole, self._names, whole)


def calls_in(text: str, names: Sequence[str]) -> list[Call]:
    """The calls that a text is; none where any of it is something else.

    >>> calls_in('[{"name": "add", "arguments": {"a": 1}}]', ["add"])
    [Call(name='add', arguments='{"a": 1}')]
    """
    calls: list[Call] = []
    at, decoder = 0, json.JSONDecoder()
    while at < len(text):
        if between := _BETWEEN.match(text, at):
            at = between.end()
            continue
        named = _NAME.match(text, at)
        try:
            value, at = decoder.raw_decode(text, named.end() if named else at)
        except (ValueError, RecursionError):
            return []
        if named:
            value = {"name": named["name"], "arguments": value}
        for one in value if isinstance(value, list) else [value]:
            if (call := _call_of(one, names)) is None:
                return []
            calls.append(call)
    return calls


def calls_or_text(text: str, names: Sequence[str], otherwise: str) -> Sequence[str | Call]:
    """The calls that a text is, else another text alone."""
    return calls_in(text, names) or [otherwise]


def _call_of(value: Any, names: Sequence[str]) -> Call | None:
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        return Call(value["name"], arguments)
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _may_be_bare(text: str, names: Sequence[str]) -> bool:
    """Whether a whole answer that begins so may be calls without marks."""
    if not text or text[0] == "{" or _LIST.match(text):
        return True
    return any(name.startswith(text) or (text.startswith(name) and _AFTER_NAME.match(text[len(name) :])) for name in names)


def _first_mark(text: str) -> tuple[str | None, int]:
    found = [(text.find(mark), mark) for mark in _MARKS if mark in text]
    return (min(found)[1], min(found)[0]) if found else (None, -1)


def _length_of_begun_mark(text: str) -> int:
    """How many characters at the end may be the beginning of a mark."""
    return max((n for mark in _MARKS for n in range(1, len(mark)) if text.endswith(mark[:n])), default=0)


# -- answers as clients get them ---------------------------------------------------------------------------------------


def with_calls(answer: dict[str, Any], names: Sequence[str], forced: bool) -> dict[str, Any]:
    """A whole answer whose text was looked through for calls. forced: it is one, by its schema: of one tool the arguments."""
    choice = answer["choices"][0]
    text, calls = found_calls(choice["message"]["content"] or "", names, forced)
    if not calls:
        return answer
    message = {**choice["message"], "content": text or None, "tool_calls": [call.as_json() for call in calls]}
    reason = "length" if choice["finish_reason"] == "length" and forced else "tool_calls"
    return {**answer, "choices": [{**choice, "message": message, "finish_reason": reason}]}


def found_calls(text: str, names: Sequence[str], forced: bool) -> tuple[str, list[Call]]:
    """The text beside calls, and the calls, of a whole answer."""
    if forced:
        return "", [Call(names[0], text)] if len(names) == 1 else calls_in(text, names)
    reader = CallReader(names)
    parts = reader.feed(text) + reader.finish()
    calls = [part for part in parts if isinstance(part, Call)]
    return ("".join(part for part in parts if isinstance(part, str)).strip(), calls) if calls else (text, [])


def stream_with_calls(
    chunks: Iterator[dict[str, Any] | None], names: Sequence[str], forced: bool
) -> Iterator[dict[str, Any] | None]:
    """The chunks of an answer, with calls instead of their text, each as soon as it is whole; a forced one as it is written.

    Text that may become a call is held back; None is yielded for it, so that the answer can be cancelled.
    """
    sender: _Forced | _Found = _Forced(names[0]) if forced and len(names) == 1 else _Found(names, forced)
    held: list[Any] = []
    for chunk in chunks:
        content = chunk and chunk["choices"][0]["delta"].get("content")
        if chunk is None or (not content and chunk["choices"][0]["finish_reason"] is None):
            yield chunk  # the role, or reasoning
            continue
        choice = chunk["choices"][0]
        reason = choice["finish_reason"]
        deltas = sender.deltas(content or "", reason is not None)
        rest, held = with_held_logprobs(chunk, held), []
        for delta in deltas:
            yield with_delta(rest, delta)
            rest = without_logprobs(rest)
        if reason is not None:
            yield with_delta(rest, {}, "tool_calls" if sender.n_calls and (reason == "stop" or not forced) else reason)
        elif not deltas:
            held = logprobs_of(rest)
            yield None


class _Forced:
    """A call of one tool, whose arguments are the answer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.n_calls = 0

    def deltas(self, text: str, final: bool) -> list[dict[str, Any]]:
        if not text and not (final and not self.n_calls):
            return []
        if self.n_calls:
            return [{"tool_calls": [{"index": 0, "function": {"arguments": text}}]}]
        self.n_calls = 1
        return [{"tool_calls": [{"index": 0, **Call(self._name, text).as_json()}]}]


class _Found:
    """Calls that are found in the answer. forced: it is nothing but one, which is known at the end."""

    def __init__(self, names: Sequence[str], forced: bool) -> None:
        self._names, self._forced = names, forced
        self._reader = CallReader(names)
        self._text = ""
        self.n_calls = 0

    def deltas(self, text: str, final: bool) -> list[dict[str, Any]]:
        if self._forced:
            self._text += text
            parts: list[str | Call] = list(calls_in(self._text, self._names)) if final else []
        else:
            parts = self._reader.feed(text) + (self._reader.finish() if final else [])
        return [self._delta(part) for part in parts]

    def _delta(self, part: str | Call) -> dict[str, Any]:
        if isinstance(part, str):
            return {"content": part}
        self.n_calls += 1
        return {"tool_calls": [{"index": self.n_calls - 1, **part.as_json()}]}


def with_delta(chunk: dict[str, Any], delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    """A chunk with another delta."""
    return {**chunk, "choices": [{**chunk["choices"][0], "delta": delta, "finish_reason": reason}]}


# -- logprobs, which stay with the text that they are of, once ------------------------------------------------------------


def logprobs_of(chunk: dict[str, Any]) -> list[Any]:
    """The tokens of a chunk with their logprobs."""
    return list((chunk["choices"][0].get("logprobs") or {}).get("content") or ())


def with_held_logprobs(chunk: dict[str, Any], held: list[Any]) -> dict[str, Any]:
    """A chunk with the logprobs of text that was held back before it."""
    if not held:
        return chunk
    choice = chunk["choices"][0]
    logprobs = {**(choice.get("logprobs") or {"refusal": None}), "content": held + logprobs_of(chunk)}
    return {**chunk, "choices": [{**choice, "logprobs": logprobs}]}


def without_logprobs(chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk whose logprobs have been sent."""
    choice = chunk["choices"][0]
    return {**chunk, "choices": [{**choice, "logprobs": None}]} if choice.get("logprobs") else chunk
