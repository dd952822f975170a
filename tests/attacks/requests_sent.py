"""Attacks on the server: requests of clients, each with what the answer must be. The lists are those of the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import test_costs
import test_openai_answers as answers
import test_openai_protocol as fields
from protocol import CHAT, TEXT, USER

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Sent:
    """A request; right: whether the answer is what it must be. seconds: in which it must be there."""

    path: str
    body: bytes
    right: Callable[[httpx.Response], bool]
    seconds: float = 20.0


def _cases(test: Any, number: int = 0) -> list[Any]:
    """The values of a test's parametrize mark."""
    return list(test.pytestmark[number].args[1])


def _answered(response: httpx.Response) -> bool:
    return response.status_code == 200 and bool(response.json()["choices"])


def _refused(name: str) -> Callable[[httpx.Response], bool]:
    """A 4xx whose error names the field."""
    return lambda response: 400 <= response.status_code < 500 and name in response.text


def _chat(right: Callable[[httpx.Response], bool], **more: Any) -> Sent:
    body = {"messages": USER, "max_tokens": 4, "temperature": 0, **more}
    return Sent(CHAT, json.dumps(body).encode(), right)


def _text(right: Callable[[httpx.Response], bool], **more: Any) -> Sent:
    return Sent(TEXT, json.dumps({"prompt": "x", "max_tokens": 4, "temperature": 0, **more}).encode(), right)


def _called(response: httpx.Response) -> bool:
    """A call of one of the tools, with arguments as its schema says."""
    if response.status_code != 200:
        return False
    calls = response.json()["choices"][0]["message"].get("tool_calls") or []
    names = ("one", "two")
    return [c["function"]["name"] in names and json.loads(c["function"]["arguments"])["n"] in (1, 2) for c in calls] == [True]


def _echoed(response: httpx.Response) -> bool:
    if response.status_code != 200:
        return False
    logprobs = response.json()["choices"][0]["logprobs"]
    return (
        logprobs is not None
        and logprobs["token_logprobs"][0] is None
        and len(logprobs["tokens"]) == len(logprobs["token_logprobs"])
    )


def _nothing_generated(response: httpx.Response) -> bool:
    return response.status_code == 200 and response.json()["usage"]["completion_tokens"] == 0


def _usage(response: httpx.Response) -> bool:
    chunks = [line for line in response.text.splitlines() if line.startswith("data: {")]
    return response.status_code == 200 and '"completion_tokens"' in (chunks or [""])[-1]


PROTOCOL = {
    f"chat: {field} is null": _chat(_answered, **{field: None}) for field in _cases(fields.test_null_is_the_default_of_a_chat)
}
PROTOCOL |= {
    f"completion: {field} is null": _text(_answered, **{field: None})
    for field in _cases(fields.test_null_is_the_default_of_a_completion)
}
PROTOCOL |= {
    f"{field}={value!r}": _chat(_refused(field), **{field: value})
    for field, value in _cases(fields.test_what_cannot_be_honoured_is_refused_by_name)
}
PROTOCOL |= {
    f"{field}={value!r} changes nothing": _chat(_answered, **{field: value})
    for field, value in _cases(fields.test_what_changes_no_answer_is_taken)
}
PROTOCOL |= {
    f"messages={messages!r}": _chat(_refused("messages"), messages=messages)
    for messages, _ in _cases(fields.test_a_wrong_message_is_named)
}
PROTOCOL |= {
    f"prompt={prompt!r}": _text(_refused("prompt"), prompt=prompt) for prompt in _cases(answers.test_prompts_that_are_refused)
}
PROTOCOL |= {
    f"tools {names}, {json.dumps(choice)[:40]}": _chat(
        _called, tools=[answers.tool(name) for name in names], tool_choice=choice, max_tokens=200
    )
    for names, choice in _cases(answers.test_a_forced_call_is_a_call)
}
PROTOCOL |= {
    "echo with logprobs": _text(_echoed, echo=True, logprobs=1, prompt=answers.PROMPT_TOKENS),
    "max_tokens 0": _text(_nothing_generated, max_tokens=0),
    "max_tokens 0 with echo": _text(_nothing_generated, max_tokens=0, echo=True),
    "usage of a stream": _chat(_usage, stream=True, stream_options={"include_usage": True}),
    "usage of a streamed completion": _text(_usage, stream=True, stream_options={"include_usage": True}),
}


def _client_error(response: httpx.Response) -> bool:
    return 400 <= response.status_code < 500


COSTLY = {name: Sent(path, body, _client_error, 3.0) for name, (path, body) in test_costs.COSTLY.items()}
SERVER = {"the OpenAI protocol": PROTOCOL, "cheap requests that cost much": COSTLY}
