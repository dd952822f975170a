"""The messages of a chat request: checked by hand, each once, and put into the form that chat templates know.

What a client got as an answer can be sent back as it is: fields that are null are dropped.
"""

from __future__ import annotations

from typing import Any

_FIELDS = {  # beside role and content
    "system": {"name"},
    "developer": {"name"},
    "user": {"name"},
    "assistant": {"name", "tool_calls", "function_call", "refusal", "annotations", "reasoning_content"},
    "tool": {"tool_call_id", "name"},
    "function": {"name"},
}


def plain_messages(given: Any) -> list[dict[str, Any]]:
    """Messages as chat templates know them. Raises ValueError that names the message and what is wrong with it.

    Text parts are joined, "developer" becomes "system", a missing content becomes an empty one.

    >>> plain_messages([{"role": "developer", "content": [{"type": "text", "text": "Be brief."}], "name": None}])
    [{'role': 'system', 'content': 'Be brief.'}]
    """
    if not isinstance(given, list):
        raise ValueError("a list of messages is needed")
    if not given:
        raise ValueError("there are none; give at least one message")
    return [_plain(message, number) for number, message in enumerate(given)]


def _plain(message: Any, number: int) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ValueError(f"message {number} is not an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in _FIELDS:
        raise ValueError(f"message {number} has the role {_short(role)}; there are {', '.join(_FIELDS)}")
    plain = {name: value for name, value in message.items() if value is not None and name != "cache_control"}  # a hint
    for name in plain.keys() - {"role", "content"} - _FIELDS[role]:
        raise ValueError(f"message {number} ({role}): the field {_short(name)} cannot be honoured")
    plain["role"] = "system" if role == "developer" else role
    plain["content"] = _content(plain, role, number)
    if plain.pop("annotations", None):
        raise ValueError(f"message {number} ({role}): annotations cannot be honoured")
    for name in ("name", "tool_call_id", "reasoning_content"):
        if not isinstance(plain.get(name, ""), str):
            raise ValueError(f"message {number} ({role}): {name} is not a text")
    if "tool_calls" in plain:
        plain["tool_calls"] = _tool_calls(plain["tool_calls"], f"message {number} ({role})")
        if not plain["tool_calls"]:
            del plain["tool_calls"]
    if "function_call" in plain:
        _check_function(plain["function_call"], f"message {number} ({role}): function_call")
    return plain


def _content(message: dict[str, Any], role: str, number: int) -> str:
    content = message.get("content", message.pop("refusal", None))
    if content is None:
        if role != "assistant":
            raise ValueError(f"message {number} ({role}) has no content")
        return ""
    if isinstance(content, list):
        return "".join(_text(part, f"message {number} ({role})") for part in content)
    if not isinstance(content, str):
        raise ValueError(f"message {number} ({role}): content is neither a text nor a list of parts")
    return content


def _text(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    text = part.get("text" if kind == "text" else "refusal") if isinstance(part, dict) else None
    if kind not in ("text", "refusal") or not isinstance(text, str):
        raise ValueError(f"{where}: a content part of type {_short(kind)}; this server reads text only")
    return text


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise ValueError(f"{where}: tool_calls is not a list")
    for call in calls:
        if not isinstance(call, dict) or call.get("type", "function") != "function":
            raise ValueError(f"{where}: a tool call is an object of type function")
        _check_function(call.get("function"), f"{where}: the function of a tool call")
    return [
        {"id": call.get("id") or "", "type": "function", "function": {k: call["function"][k] for k in ("name", "arguments")}}
        for call in calls
    ]


def _check_function(function: Any, where: str) -> None:
    if not isinstance(function, dict) or not all(isinstance(function.get(key), str) for key in ("name", "arguments")):
        raise ValueError(f"{where} needs a name and arguments, both text")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
