"""OpenAI's /v1/responses: its request becomes a chat request, the answer to that a response. The server keeps none of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from .api_errors import ApiError
from .prepare import Job, prepare_chat
from .requests import MOST_TOOLS, ChatRequest, PaddingOptions, Request, at_most, validated
from .response_events import ResponseEvents, response_skeleton
from .served_model import ServedModel

_SAME = (
    "model", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed",
    "stop", "logit_bias", "grammar", "parallel_tool_calls", "stream", "skip", "tolerance",
)  # fmt: skip
"""Fields that a chat request has under the same name."""
_NOT_KEPT = "this server keeps no responses: send the conversation as input"


class ResponseRequest(Request):
    """The part of OpenAI's request that text and functions need."""

    only_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {
        "background": (False,),
        "include": ([],),
        "reasoning": ({}, {"effort": "none"}),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }
    refused: ClassVar[dict[str, str]] = {
        "previous_response_id": _NOT_KEPT,
        "conversation": _NOT_KEPT,
        "prompt": "this server keeps no prompts",
        "max_tool_calls": "this server calls no tools itself",
        "context_management": "this server shortens no conversation",
    }

    model: str | None = None
    input: str | list[Any] = Field(description="A text, or the items of a conversation.")
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Any = None
    logit_bias: Any = None
    grammar: str | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: PaddingOptions | None = None
    text: dict[str, Any] | None = None
    tools: Annotated[list[Any] | None, BeforeValidator(at_most(MOST_TOOLS))] = None
    tool_choice: Any = None
    skip: Any = Field(None, description='Layers to skip: "auto", null, a share below 1, or a list of layers.')
    tolerance: Any = Field(None, description='With skip "auto": the largest predicted cost, KL in nats per token.')

    def as_chat(self) -> ChatRequest:
        """The chat request that asks for the same. Raises ApiError that names the field of this one."""
        given = {name: getattr(self, name) for name in _SAME if name in self.model_fields_set}
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        given["messages"] = [*system, *messages_of(self.input)]
        if self.max_output_tokens is not None:
            given["max_tokens"] = self.max_output_tokens
        if self.tools:
            given["tools"] = [_chat_tool(tool) for tool in self.tools]
        if self.tool_choice is not None:
            given["tool_choice"] = _chat_choice(self.tool_choice)
        if (form := _text_format(self.text)) is not None:
            given["response_format"] = form
        if self.stream:
            given["stream_options"] = {"include_usage": True}
        return _naming_own_fields(validated, ChatRequest, given)  # type: ignore[no-any-return]

    def echoed(self, chat: ChatRequest) -> dict[str, Any]:
        """The settings that a response repeats, as they were taken."""
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "temperature": chat.temperature,
            "text": self.text or {"format": {"type": "text"}},
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "top_p": chat.top_p,
        }


def prepare_response(served: ServedModel, body: ResponseRequest) -> Job:
    """Raises ApiError for a request that cannot be answered."""
    chat = body.as_chat()
    job: Job = _naming_own_fields(prepare_chat, served, chat)
    count = functools.partial(_count, served)
    return replace(job, make=lambda: _respond(job, response_skeleton(served.name, body.echoed(chat)), count))


def _respond(job: Job, skeleton: dict[str, Any], count: Callable[[str], int]) -> Any:
    """In the worker thread: the response, or its events."""
    made, answer = ResponseEvents(skeleton, count), job.make()
    return made.whole(answer) if isinstance(answer, dict) else made.events(answer)


def _count(served: ServedModel, text: str) -> int:
    return len(served.llm.tokenize(text.encode(), add_bos=False))


_OWN_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text"}


def _naming_own_fields(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function whose ApiError names fields of a chat request."""
    try:
        return function(*args)
    except ApiError as error:
        error.param = _OWN_NAMES.get(error.param or "", error.param)
        raise


# -- input ---------------------------------------------------------------------------------------------------------------


def messages_of(given: str | list[Any]) -> list[dict[str, Any]]:
    """The input as messages of a chat: calls and reasoning become part of the assistant's message. Raises ApiError.

    >>> messages_of([{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}])
    [{'role': 'user', 'content': 'Hello'}]
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(given):
        kind = item.get("type", "message") if isinstance(item, dict) else type(item).__name__
        if kind not in _ITEMS or not isinstance(item, dict):
            raise _bad_item(number, f"the type {str(kind)[:100]!r}; there are {', '.join(_ITEMS)}")
        _ITEMS[kind](messages, item, number)
    return messages


def _bad_item(number: int, what: str) -> ApiError:
    return ApiError(400, f"item {number} has {what}", param="input")


def _add_message(messages: list[dict[str, Any]], item: dict[str, Any], number: int) -> None:
    role, content = item.get("role"), _text_of(item.get("content"), number)
    last = messages[-1] if messages else {}
    if role == "assistant" and set(last) == {"role", "content", "reasoning_content"} and not last["content"]:
        last["content"] = content  # what its reasoning led to
    else:
        messages.append({"role": role, "content": content})


def _add_call(messages: list[dict[str, Any]], item: dict[str, Any], number: int) -> None:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    if not all(isinstance(value, str) for value in function.values()):
        raise _bad_item(number, "no name and arguments, both text")
    _last_answer(messages).setdefault("tool_calls", []).append(
        {"id": str(item.get("call_id") or ""), "type": "function", "function": function}
    )


def _add_output(messages: list[dict[str, Any]], item: dict[str, Any], number: int) -> None:
    output = _text_of(item.get("output"), number)
    messages.append({"role": "tool", "tool_call_id": str(item.get("call_id") or ""), "content": output})


def _add_reasoning(messages: list[dict[str, Any]], item: dict[str, Any], number: int) -> None:
    if item.get("encrypted_content"):
        raise _bad_item(number, "encrypted_content, which this server cannot read")
    if text := _text_of(item.get("content") or item.get("summary") or "", number):
        messages.append({"role": "assistant", "content": "", "reasoning_content": text})


_ITEMS = {
    "message": _add_message,
    "function_call": _add_call,
    "function_call_output": _add_output,
    "reasoning": _add_reasoning,
}


_TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")


def _last_answer(messages: list[dict[str, Any]]) -> dict[str, Any]:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text_of(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _bad_item(number, "neither a text nor a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text") or not isinstance(
            text, str
        ):
            raise _bad_item(number, f"a part of type {str(kind)[:100]!r}; this server reads text only")
        texts.append(text)
    return "".join(texts)


# -- tools and formats ---------------------------------------------------------------------------------------------------


def _chat_tool(tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool  # refused by its type
    return {
        "type": "function",
        "function": {name: value for name, value in tool.items() if name != "type" and value is not None},
    }


def _chat_choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": choice.get("tools")}}
    return choice


def _text_format(text: dict[str, Any] | None) -> Any:
    """The response_format of a chat request. Raises ApiError for what `text` cannot have."""
    for name in set(text or ()) - {"format", "verbosity"}:
        raise ApiError(400, f"text.{name[:100]} cannot be honoured by this server", param="text")
    if text and text.get("verbosity") not in (None, "medium"):
        raise ApiError(400, "text.verbosity: this server knows 'medium'", param="text")
    form = text.get("format") if text else None
    if isinstance(form, dict) and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}
    return form
