"""Calls of tools that a conversation has already: their arguments as the model's chat template takes them.

Clients send them as JSON text. Most templates were written for objects: of a text `tojson` makes a JSON string in quotes, which
no model was trained on, and others stop at it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .api_errors import ApiError

_PROBE = '{"first_cpp": "probe"}'

Messages = list[dict[str, Any]]


def as_template_takes(messages: Messages, render: Callable[[Messages], str]) -> Messages:
    """The messages with the arguments of their calls as text, where the template writes text as it is, else as objects.

    render: what the template writes of messages; raises ApiError for those that it refuses.

    >>> call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    >>> given = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    >>> as_template_takes(given, json.dumps)[0]["tool_calls"][0]["function"]["arguments"]
    {'a': 1}
    """
    if not any("tool_calls" in message for message in messages):
        return messages
    try:
        if _PROBE in render(_with_arguments(messages, lambda _: _PROBE)):
            return messages
    except ApiError:
        pass  # the template may take objects alone
    objects = _with_arguments(messages, _parsed)
    try:
        render(objects)
    except ApiError:
        return messages
    return objects


def _with_arguments(messages: Messages, change: Callable[[str], Any]) -> Messages:
    def changed(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": change(function["arguments"])}}

    return [
        {**message, "tool_calls": list(map(changed, message["tool_calls"]))} if "tool_calls" in message else message
        for message in messages
    ]


def _parsed(arguments: str) -> Any:
    """The object that a text is; the text where it is none."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments
