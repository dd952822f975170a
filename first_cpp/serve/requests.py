"""What requests may carry: llama_cpp.server's fields, OpenAI's, and `skip`. docs/reference/openai.md has the table.

A field is honoured, or refused by its name; null is its default. FIELDS_OF_CALLERS change no answer and are accepted.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar

from llama_cpp.server.types import (
    CreateChatCompletionRequest,
    CreateCompletionRequest,
    CreateEmbeddingRequest,
    TokenizeInputRequest,
)
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from .api_errors import ApiError
from .messages import plain_messages

MOST_FIELDS = 100  # of a request; all that are known are fewer
MOST_STOPS = 64
MOST_STOP_CHARACTERS = 4096
MOST_BIASES = 1024
MOST_TOOLS = 128  # as OpenAI
MOST_TEXTS = 2048  # to embed in one request, as OpenAI

FIELDS_OF_CALLERS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
"""Say who asks or group requests; no answer depends on them."""
ONLY_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "prompt_cache_retention": ("in_memory",),
    "prompt_cache_options": ({"mode": "implicit"},),
}
"""Fields with the only values that can be honoured here."""
REFUSED = frozenset({"audio", "prediction", "web_search_options", "moderation", "dimensions"})
"""Fields that no value of can be honoured here."""


def at_most(count: int) -> Callable[[Any], Any]:
    """A validator that refuses a list or object that is too long before its items are checked one by one."""

    def check(value: Any) -> Any:
        if isinstance(value, (list, dict)) and len(value) > count:
            raise ValueError(f"{len(value)} entries, at most {count} are allowed")
        return value

    return check


class PaddingOptions(BaseModel):
    """What every stream can be asked for."""

    model_config = ConfigDict(extra="forbid")
    include_obfuscation: Annotated[bool | None, Field(description="This server sends none.")] = None

    @field_validator("include_obfuscation")
    @classmethod
    def _no_padding(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("this server sends no obfuscation")
        return value


class StreamOptions(PaddingOptions):
    include_usage: bool | None = None


class Request(BaseModel):
    """only_defaults: fields of one kind of request with the only values that can be honoured. refused: fields and why."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")  # NaN reaches the sampler otherwise
    only_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {}
    refused: ClassVar[dict[str, str]] = {}


R = TypeVar("R", bound=Request)


def parse_request(kind: type[R], body: bytes) -> R:
    """The request in the body of an HTTP request. Raises ApiError that names the field and what is wrong with it.

    >>> parse_request(CompletionRequest, b'{"prompt": "Once", "temperature": null}').temperature
    0.8
    >>> parse_request(CompletionRequest, b'{"prompt": "Once", "temprature": 1}')
    Traceback (most recent call last):
    first_cpp.serve.api_errors.ApiError: unknown field 'temprature'; did you mean 'temperature'?
    """
    return validated(kind, _known_fields(kind, _json_of(body)))


def validated(kind: type[R], data: dict[str, Any]) -> R:
    """The request that has these fields. Raises ApiError that names the field and what is wrong with it."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        field = str(first["loc"][0]) if first["loc"] else None
        message = first["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"{where or 'body'}: {message}{more}", param=field) from error


def _json_of(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:  # not Unicode, a number of 5,000 digits, brackets nested too deep
        raise ApiError(400, f"the body is not JSON that can be read: {error}") from error
    if not isinstance(data, dict):
        raise ApiError(400, f"the body is a JSON {type(data).__name__}; an object is needed")
    if len(data) > MOST_FIELDS:
        raise ApiError(400, f"{len(data)} fields, at most {MOST_FIELDS} are known")
    return data


def _known_fields(kind: type[Request], data: dict[str, Any]) -> dict[str, Any]:
    """The fields that matter: null is the default, what is unknown or cannot be honoured is refused."""
    given = {name: value for name, value in data.items() if value is not None or name == "skip"}
    only = {**ONLY_DEFAULTS, **kind.only_defaults}
    for name in list(given):
        if name in FIELDS_OF_CALLERS:
            del given[name]
        elif name in only and (name != "best_of" or "best_of" in kind.model_fields):
            _check_default(name, given.pop(name), only[name])
        elif name in kind.refused:
            raise ApiError(400, f"{name} cannot be honoured: {kind.refused[name]}", param=name)
        elif name in REFUSED:
            raise ApiError(400, f"{name} cannot be honoured by this server", param=name)
        elif name not in kind.model_fields:
            near = difflib.get_close_matches(name[:100], kind.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ApiError(400, f"unknown field {_short(name)}{hint}", param=name[:100])
    if given.get("stream_options") is not None and given.get("stream") is not True:
        raise ApiError(400, "stream_options needs stream=true", param="stream_options")
    return given


def _check_default(name: str, value: Any, defaults: tuple[Any, ...]) -> None:
    if not any(type(value) is type(allowed) and value == allowed for allowed in defaults):
        allowed = " or ".join(repr(one) for one in defaults)
        raise ApiError(400, f"{name}={_short(value)} cannot be honoured; this server knows {allowed}", param=name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


class _Sampled(Request):
    """What requests for an answer share."""

    skip: Any = Field(None, description='Layers to skip: "auto", null, a share below 1, or a list of layers.')
    tolerance: Any = Field(None, description='With skip "auto": what one more skipped layer may cost, KL in nats per token.')
    stop: Annotated[str | list[str] | None, BeforeValidator(at_most(MOST_STOPS))] = None
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(at_most(MOST_BIASES))] = None
    stream_options: StreamOptions | None = None

    @field_validator("stop")
    @classmethod
    def _stop(cls, stop: str | list[str] | None) -> list[str]:
        stops = [stop] if isinstance(stop, str) else stop or []
        if "" in stops:
            raise ValueError("an empty text would end every answer before it begins; leave it out")
        if sum(map(len, stops)) > MOST_STOP_CHARACTERS:
            raise ValueError(f"more than {MOST_STOP_CHARACTERS} characters in all")
        return stops

    @property
    def include_usage(self) -> bool:
        """Whether a stream is to end with a chunk that has the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(_Sampled, CreateCompletionRequest):  # type: ignore[misc]
    prompt: Any = Field("", description="A text or a list of tokens; one prompt a request.")

    @field_validator("prompt")
    @classmethod
    def _one_prompt(cls, prompt: Any) -> str | list[int]:
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
            if len(prompt) > 1:
                raise ValueError(f"{len(prompt)} prompts; one a request is answered")
            (prompt,) = prompt
        if isinstance(prompt, str):
            return prompt
        return _tokens(prompt)


class EmbeddingRequest(Request, CreateEmbeddingRequest):  # type: ignore[misc]
    input: Any = Field(description="A text, or a list of texts.")
    encoding_format: str = "float"

    @field_validator("encoding_format")
    @classmethod
    def _format(cls, name: str) -> str:
        if name not in ("float", "base64"):
            raise ValueError(f"{name[:100]!r} is not 'float' or 'base64'")
        return name

    @field_validator("input")
    @classmethod
    def _texts(cls, given: Any) -> list[str]:
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts:
            raise ValueError("a text or a list of texts is needed")
        if len(texts) > MOST_TEXTS:
            raise ValueError(f"{len(texts)} texts; at most {MOST_TEXTS} a request are embedded")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("only texts are embedded: tokens would be those of another model (with LangChain's "
                             "OpenAIEmbeddings, set check_embedding_ctx_length=False)")  # fmt: skip
        return texts


def _tokens(value: Any) -> list[int]:
    if not isinstance(value, list) or any(type(token) is not int for token in value):
        raise ValueError("not a text, nor a list of tokens")
    return value


class ChatRequest(_Sampled, CreateChatCompletionRequest):  # type: ignore[misc]
    messages: list[Any] = Field(description="The conversation, ending with what is to be answered.")
    max_completion_tokens: int | None = Field(None, description="The newer name of max_tokens.")
    max_tokens: int | None = Field(None, description="Longest answer; -1 and by default the rest of the context.")
    parallel_tool_calls: bool | None = None
    tools: Annotated[list[Any] | None, BeforeValidator(at_most(MOST_TOOLS))] = None
    functions: Annotated[list[Any] | None, BeforeValidator(at_most(MOST_TOOLS))] = None
    tool_choice: Any = None
    function_call: Any = None

    @field_validator("max_tokens", "max_completion_tokens")
    @classmethod
    def _no_limit(cls, count: int | None) -> int | None:
        if count is not None and count < 1 and count != -1:
            raise ValueError("a number of tokens of at least 1 is needed, or -1 for no limit")
        return None if count == -1 else count

    @model_validator(mode="after")
    def _newer_name(self) -> Any:
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        return self

    @field_validator("messages", mode="before")
    @classmethod
    def _plain_messages(cls, messages: Any) -> list[dict[str, Any]]:
        return plain_messages(messages)

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


class TokenizeRequest(Request, TokenizeInputRequest):  # type: ignore[misc]
    """As in llama_cpp.server."""


class DetokenizeRequest(Request):
    """As in llama_cpp.server."""

    model: str | None = None
    tokens: Any

    @field_validator("tokens")
    @classmethod
    def _list(cls, given: Any) -> list[int]:
        return _tokens(given)
