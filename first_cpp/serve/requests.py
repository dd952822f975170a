"""What requests may carry: llama_cpp.server's fields, `skip`, and what today's OpenAI clients send beyond them."""

from __future__ import annotations

from typing import Any

from llama_cpp.server.types import CreateChatCompletionRequest, CreateCompletionRequest, CreateEmbeddingRequest
from pydantic import ConfigDict, Field, field_validator, model_validator

_SKIP = Field(None, description='Layers to skip: "auto", null, a share below 1, or a list of layers.')
_FINITE = ConfigDict(allow_inf_nan=False)  # NaN reaches the sampler otherwise


class CompletionRequest(CreateCompletionRequest):  # type: ignore[misc]
    model_config = _FINITE
    skip: Any = _SKIP


class EmbeddingRequest(CreateEmbeddingRequest):  # type: ignore[misc]
    """As in llama_cpp.server."""


class ChatRequest(CreateChatCompletionRequest):  # type: ignore[misc]
    model_config = _FINITE
    skip: Any = _SKIP
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")

    @model_validator(mode="before")
    @classmethod
    def _newer_names(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("max_completion_tokens") is not None:
            return {**data, "max_tokens": data["max_completion_tokens"]}
        return data

    @field_validator("messages", mode="before")
    @classmethod
    def _plain_messages(cls, messages: Any) -> Any:
        return [_plain(message) for message in messages] if isinstance(messages, list) else messages

    @field_validator("response_format", mode="before")
    @classmethod
    def _json_schema(cls, given: Any) -> Any:
        """OpenAI's `json_schema` in the words of llama_cpp."""
        if not isinstance(given, dict) or given.get("type") != "json_schema":
            return given
        schema = given.get("json_schema")
        if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
            raise ValueError("json_schema needs an object `schema`")
        return {"type": "json_object", "schema": schema["schema"]}


def _plain(message: Any) -> Any:
    """A message as llama_cpp knows it: text parts joined, "developer" is "system", no content is empty content."""
    if not isinstance(message, dict):
        return message
    message = dict(message)
    if message.get("role") == "developer":
        message["role"] = "system"
    if message.get("role") == "assistant" and message.get("content") is None:
        message["content"] = ""
    if isinstance(message.get("content"), list):
        message["content"] = "".join(map(_text, message["content"]))
    return message


def _text(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise ValueError(f"a content part of type {kind!r}: this server reads text only")
    return str(part["text"])
