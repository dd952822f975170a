"""The tools of a chat request: whether a call is left to the model, forced or forbidden, and calls found in an answer.

A forced call is an answer that a JSON schema holds, sent as a tool call. Left to the model, a call is what it wrote as one:
`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Hermes and Qwen do, or such an object alone, as Llama 3 does.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..runtime.json_schema import moved
from .api_errors import ApiError

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
OWN_TOOL_FORMATS = ("functionary", "functionary-v1", "functionary-v2", "chatml-function-calling")
"""Chat formats of llama_cpp that handle tools by themselves."""


@dataclass(frozen=True)
class Tools:
    """The tools that an answer may call. choice: "none", "auto" or "required"; with one tool "required" is a named choice."""

    tools: tuple[dict[str, Any], ...] = ()
    choice: str = "none"

    @property
    def names(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.tools]

    @property
    def forced(self) -> bool:
        return self.choice == "required"

    @property
    def shown(self) -> list[dict[str, Any]] | None:
        """What chat templates are given."""
        return list(self.tools) or None

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a forced call: its arguments, or with several tools an object of name and arguments.

        Raises GrammarError for parameters that are nested too deep.
        """
        if len(self.tools) == 1:
            return _parameters(self.tools[0])
        return {"anyOf": [_call_schema(tool, f"#/anyOf/{number}") for number, tool in enumerate(self.tools)]}

    def as_text(self) -> str:
        """The tools in words, for templates that have no place for them."""
        return "\n".join(["You can call these functions:", *(json.dumps(tool["function"]) for tool in self.tools)])

    def calls(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """The text beside tool calls, and the calls, in an answer.

        >>> tools = Tools(({"type": "function", "function": {"name": "add"}},), "auto")
        >>> tools.calls('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')[1][0]["function"]
        {'name': 'add', 'arguments': '{"a": 1}'}
        """
        if self.forced:
            found = [(self.names[0], text)] if len(self.tools) == 1 else [_named(text, self.names)]
            return "", [_call(*one) for one in found if one is not None]
        parts = [_named(match[1], self.names) for match in _CALL.finditer(text)]
        if parts and all(parts):
            return _CALL.sub("", text).strip(), [_call(*one) for one in parts if one is not None]
        alone = _named(text, self.names)
        return ("", [_call(*alone)]) if alone is not None else (text, [])


def tools_of(body: Any) -> Tools:
    """The tools of a request and what it wants of them; the older `functions` are tools. Raises ApiError."""
    given = body.tools if body.tools is not None else [{"type": "function", "function": f} for f in body.functions or ()]
    choice = body.tool_choice if body.tool_choice is not None else body.function_call
    for number, tool in enumerate(given):
        _check_tool(tool, number)
    tools = Tools(tuple(given), "auto" if given else "none")
    if isinstance(choice, dict):
        return _chosen(tools, choice)
    if choice not in (None, "none", "auto", "required"):
        raise ApiError(400, f'{str(choice)[:100]!r} is not "none", "auto", "required" or a function', param="tool_choice")
    if choice == "required" and not given:
        raise ApiError(400, 'tool_choice="required" needs tools', param="tool_choice")
    return Tools() if choice == "none" else replace(tools, choice=choice or tools.choice) if given else tools


def _check_tool(tool: Any, number: int) -> None:
    kind = tool.get("type") if isinstance(tool, dict) else type(tool).__name__
    if kind != "function":
        raise ApiError(400, f"tool {number} is of type {str(kind)[:100]!r}; this server knows functions", param="tools")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ApiError(400, f"tool {number} needs a function with a name", param="tools")
    if not isinstance(function.get("parameters") or {}, dict):
        raise ApiError(400, f"tool {number} ({function['name'][:100]}): parameters is not a JSON schema", param="tools")


def _chosen(tools: Tools, choice: dict[str, Any]) -> Tools:
    """The tools that an object as tool_choice leaves: one function by its name, or some of them."""
    allowed = choice.get("allowed_tools")
    if choice.get("type") == "allowed_tools" and isinstance(allowed, dict) and isinstance(allowed.get("tools"), list):
        if allowed.get("mode") not in ("auto", "required"):
            raise ApiError(400, "the mode of allowed_tools is neither 'auto' nor 'required'", param="tool_choice")
        return Tools(tuple(_by_name(tools, _name_in(one)) for one in allowed["tools"]), allowed["mode"])
    return Tools((_by_name(tools, _name_in(choice)),), "required")


def _name_in(choice: Any) -> Any:
    function = choice.get("function", choice) if isinstance(choice, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def _by_name(tools: Tools, name: Any) -> dict[str, Any]:
    for tool in tools.tools:
        if tool["function"]["name"] == name:
            return tool
    raise ApiError(400, f"the tool {str(name)[:100]!r} is not among the tools of this request", param="tool_choice")


def _parameters(tool: dict[str, Any]) -> dict[str, Any]:
    return tool["function"].get("parameters") or {"type": "object", "properties": {}}


def _call_schema(tool: dict[str, Any], place: str) -> dict[str, Any]:
    arguments = moved(_parameters(tool), f"{place}/properties/arguments")
    return {
        "type": "object",
        "properties": {"name": {"const": tool["function"]["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _named(text: str, names: list[str]) -> tuple[str, str] | None:
    """Name and arguments of a call that is the whole text; None where it is none."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or call.get("name") not in names:
        return None
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        return call["name"], arguments
    return (call["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": {"name": name, "arguments": arguments}}


# -- answers as clients get them ---------------------------------------------------------------------------------------


def with_calls(answer: dict[str, Any], tools: Tools) -> dict[str, Any]:
    """A whole answer whose text was looked through for calls."""
    choice = answer["choices"][0]
    text, calls = tools.calls(choice["message"]["content"] or "")
    if not calls:
        return answer
    message = {**choice["message"], "content": text or None, "tool_calls": calls}
    reason = "length" if choice["finish_reason"] == "length" and tools.forced else "tool_calls"
    return {**answer, "choices": [{**choice, "message": message, "finish_reason": reason}]}


def stream_with_calls(chunks: Iterator[dict[str, Any]], tools: Tools) -> Iterator[dict[str, Any] | None]:
    """The chunks of an answer, with calls instead of their text.

    Text that may become a call is held back; None is yielded for it, so that the answer can be cancelled.
    """
    held, sent = "", False
    for chunk in chunks:
        choice = chunk["choices"][0]
        held += choice["delta"].get("content") or ""
        last = choice["finish_reason"] is not None
        if not last and "role" in choice["delta"]:
            yield chunk
        elif not last and (tools.forced or _may_be_call(held, sent)):
            yield None
        elif not last:
            yield _with_delta(chunk, {"content": held})
            held, sent = "", True
        else:
            text, calls = tools.calls(held) if held else ("", [])
            if text:
                yield _with_delta(chunk, {"content": text})
            if calls:
                yield _with_delta(chunk, {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]})
            reason = choice["finish_reason"]
            yield _with_delta(chunk, {}, "tool_calls" if calls and (reason == "stop" or not tools.forced) else reason)


def _may_be_call(text: str, sent: bool) -> bool:
    """Whether a call begins in the text, or may begin at its end. sent: text before it was sent already."""
    alone = not sent and text.lstrip()[:1] in ("", "{")
    return alone or "<tool_call>" in text or any(text.endswith("<tool_call>"[:n]) for n in range(1, 11))


def _with_delta(chunk: dict[str, Any], delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {**chunk, "choices": [{**chunk["choices"][0], "delta": delta, "finish_reason": reason}]}
