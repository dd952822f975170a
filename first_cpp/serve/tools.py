"""The tools of a chat request: whether a call is left to the model, forced or forbidden.

A forced call is an answer that a JSON schema holds, sent as a tool call. Left to the model, a call is what it wrote as one, in
one of the forms of `tool_calls`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from ..runtime.json_schema import moved
from .api_errors import ApiError

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
