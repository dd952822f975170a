"""From a request to its job. Everything that can be wrong with it is refused here, before it waits in the queue."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from llama_cpp import LogitsProcessorList
from llama_cpp.llama_chat_format import get_chat_completion_handler
from llama_cpp.server.app import prepare_request_resources

from ..errors import SkipError
from ..llama import Llama
from ..runtime.grammar import check_text
from ..runtime.long_text import least_tokens
from ..runtime.structured import check_forced_tool, exact_schemas, plain_format
from ..skip import Skip
from .api_errors import ApiError, too_long
from .completions import MinTokens, Prompt, answer_completion, answer_tokens, embeddings, n_shown, with_usage
from .earlier_calls import as_template_takes
from .reasoning import Thinking, stream_with_reasoning, with_reasoning
from .requests import ChatRequest, CompletionRequest, EmbeddingRequest
from .served_model import ServedModel
from .tool_calls import stream_with_calls, with_calls
from .tools import OWN_TOOL_FORMATS, Tools, tools_of

MOST_LOGPROBS = 100
MOST_BIAS = 1e6  # more could leave a grammar no token with a finite logit
_NOT_FOR_LLAMA = {
    "n", "best_of", "logit_bias_type", "user", "min_tokens", "skip", "tolerance", "max_completion_tokens", "stream_options",
    "parallel_tool_calls", "functions", "function_call",
}  # fmt: skip


Settings: TypeAlias = tuple[Skip, float | None]


@dataclass(frozen=True)
class Job:
    """What the worker thread does. make: returns the answer, or its chunks. skip, tolerance: settings of it, where it is
    routed."""

    make: Callable[[], Any]
    stream: bool
    skip: Skip = None
    tolerance: float | None = None
    routed: bool = True


@dataclass(frozen=True)
class Order:
    """A request on its way to its model. job: made when it came, where its model was loaded then, to be refused at once if it
    must be; else, and where that model has been freed meanwhile, it is made when its turn has come.

    prepare: makes the job for the model of the name `model`; raises ApiError. stream: whether an answer is streamed.
    """

    model: str
    stream: bool
    prepare: Callable[[ServedModel], Job]
    served: ServedModel | None = None
    job: Job | None = None

    def job_for(self, served: ServedModel) -> Job:
        """Raises ApiError for a request that cannot be answered."""
        return self.job if self.job is not None and self.served is served else self.prepare(served)


def prepare_chat(served: ServedModel, body: ChatRequest) -> Job:
    """Raises ApiError for a request that cannot be answered."""
    if len(body.messages) > served.max_prompt:  # each has a token at least
        raise too_long(len(body.messages), served.max_prompt, served.llm.n_ctx())
    settings = _settings(served, body)
    kwargs = _arguments(served, body)
    if body.logprobs:
        kwargs["top_logprobs"] = body.top_logprobs or 0
        _check_logprobs(served, kwargs["top_logprobs"])
    elif body.top_logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
    kwargs["messages"] = as_template_takes(kwargs["messages"], functools.partial(_text_of, served, kwargs))
    tools = _prepare_tools(served, body, kwargs)
    param = "tools" if tools.forced else "response_format"
    kwargs["response_format"] = _refusing(param, plain_format, kwargs["response_format"])
    _refusing("tools", check_forced_tool, kwargs)
    prompt, grammar = _render(served, kwargs)
    if grammar is not None:
        _check_grammar(body, grammar._grammar)
    n_prompt = len(prompt) if isinstance(prompt, list) else len(tokens_of(served, prompt, param="messages"))
    _check_length(served, n_prompt)
    thinking = Thinking.of(served.llm, prompt)
    if thinking is not None and grammar is not None and body.grammar is None:
        thinking = replace(thinking, inside=False)  # JSON is held from its first token, whatever the prompt has opened
    make = functools.partial(_answer_chat, served.llm, kwargs, tools, thinking, n_prompt if body.include_usage else None)
    return Job(make, bool(body.stream), *settings)


def prepare_completion(served: ServedModel, body: CompletionRequest) -> Job:
    """Raises ApiError for a request that cannot be answered."""
    settings = _settings(served, body)
    kwargs = _arguments(served, body)
    if body.logprobs is not None:
        _check_logprobs(served, body.logprobs)
    if body.grammar is not None:
        _check_grammar(body, body.grammar)
    if body.echo and body.stream and body.logprobs is not None:
        raise ApiError(400, "echo with logprobs cannot be streamed; ask for them without stream", param="echo")
    if body.suffix is not None:
        return _prepare_infill(served, body, kwargs, settings)
    prompt = Prompt.of(served.llm, body.prompt, _prompt_tokens(served, body.prompt))
    _check_length(served, len(prompt.tokens))
    usage = len(prompt.tokens) if body.include_usage else None
    make = functools.partial(answer_completion, served.llm, kwargs, prompt, usage)
    return Job(make, bool(body.stream), *settings)


def _prepare_infill(served: ServedModel, body: CompletionRequest, kwargs: dict[str, Any], settings: Settings) -> Job:
    """A text between `prompt` and `suffix`, as the base class makes it."""
    for name, given in (("echo", body.echo), ("logprobs", body.logprobs is not None), ("max_tokens", body.max_tokens == 0)):
        if given:
            raise ApiError(400, f"{name} cannot be combined with suffix", param=name)
    if not isinstance(body.prompt, str):
        raise ApiError(400, "suffix needs the prompt as text", param="prompt")
    n_prompt = (
        len(tokens_of(served, body.prompt)) + len(tokens_of(served, body.suffix or "", param="suffix")) + 3
    )  # marks of its parts
    _check_length(served, n_prompt)
    make = functools.partial(served.llm.create_completion, **kwargs)
    if body.include_usage:
        return Job(lambda: with_usage(make(), served.llm, n_prompt), True, *settings)
    return Job(make, bool(body.stream), *settings)


def prepare_embedding(served: ServedModel, body: EmbeddingRequest) -> Job:
    """Raises ApiError for a request that cannot be answered."""
    llm = served(body.model)
    if not served.embeddings:
        raise ApiError(400, "embeddings need the server to be started with --embeddings")
    most, n_all = min(served.max_prompt, llm.n_batch), 0
    for number, text in enumerate(body.input):
        n_tokens = len(tokens_of(served, text, most, "input")) if text else 0
        if not n_tokens:
            raise ApiError(400, f"text {number} is empty; there is nothing to embed", param="input")
        if n_tokens > most:
            raise too_long(n_tokens, most, llm.n_ctx(), "input")
        n_all += n_tokens
    make = functools.partial(embeddings, llm, body.input, n_all, served.name, body.encoding_format)
    return Job(make, stream=False, routed=False)


def _answer_chat(llm: Llama, kwargs: dict[str, Any], tools: Tools, thinking: Thinking | None, n_prompt: int | None) -> Any:
    """In the worker thread: the answer, or its chunks. n_prompt: prompt tokens, where a stream is to end with its usage."""
    answer = llm.create_chat_completion(**kwargs)
    if isinstance(answer, dict):
        _end_logprobs_with_text(llm, answer)
        answer = answer if thinking is None else with_reasoning(answer, thinking)
        return with_calls(answer, tools.names, tools.forced) if tools.tools else answer
    chunks = answer if thinking is None else stream_with_reasoning(answer, thinking)
    chunks = stream_with_calls(chunks, tools.names, tools.forced) if tools.tools else chunks
    return chunks if n_prompt is None else with_usage(chunks, llm, n_prompt)


def _end_logprobs_with_text(llm: Llama, answer: dict[str, Any]) -> None:
    """Drop the logprobs of a stop, which is no part of the answer."""
    choice = answer["choices"][0]
    if choice.get("logprobs") and choice["finish_reason"] == "stop":
        made = answer_tokens(llm, answer["usage"]["prompt_tokens"])
        del choice["logprobs"]["content"][n_shown(llm, made, choice["message"]["content"] or "") :]


def _prepare_tools(served: ServedModel, body: ChatRequest, kwargs: dict[str, Any]) -> Tools:
    """Put the tools of a request into the arguments. Raises ApiError where they cannot be honoured."""
    llm, tools = served.llm, tools_of(body)
    kwargs["tools"], kwargs["tool_choice"] = tools.shown, None
    if not tools.tools:
        return tools
    if llm.chat_handler is None and llm.chat_format in OWN_TOOL_FORMATS:
        if tools.forced and len(tools.tools) > 1:
            raise ApiError(400, f"chat format {llm.chat_format} cannot be made to call one of several", param="tool_choice")
        name = {"type": "function", "function": {"name": tools.names[0]}}
        kwargs["tool_choice"] = name if tools.forced else "auto"
        return Tools()
    knows_tools = _render(served, kwargs)[0] != _render(served, {**kwargs, "tools": None})[0]
    if not knows_tools and not tools.forced:
        raise ApiError(
            400,
            "the chat template of this model has no place for tools; a call can be forced by tool_choice, or none allowed",
            param="tools",
        )
    if tools.forced:
        if body.grammar is not None:
            raise ApiError(400, "a grammar cannot be combined with a forced tool call", param="grammar")
        kwargs["response_format"] = {"type": "json_object", "schema": _refusing("tools", tools.schema)}
        if not knows_tools:
            kwargs["messages"] = [{"role": "system", "content": tools.as_text()}, *kwargs["messages"]]
    return tools


# -- checks -------------------------------------------------------------------------------------------------------------


def _arguments(served: ServedModel, body: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """The keywords of `Llama`'s method, as llama_cpp.server makes them."""
    llm = served(body.model)
    kwargs = body.model_dump(exclude=_NOT_FOR_LLAMA)
    kwargs["model"] = served.name
    if kwargs.get("seed") is None:
        kwargs["seed"] = random.SystemRandom().randrange(2**31)  # llama_cpp's own default is the same for every request
    _refusing("logit_bias", prepare_request_resources, body, served, body.model, kwargs)
    if body.min_tokens > 0:
        kwargs["logits_processor"] = LogitsProcessorList([MinTokens(llm, body.min_tokens)])
    for token, bias in (kwargs.get("logit_bias") or {}).items():
        if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < llm.n_vocab()):
            raise ApiError(400, f"{token!r} is not a token of this model: 0 to {llm.n_vocab() - 1}", param="logit_bias")
        if abs(bias) > MOST_BIAS:
            raise ApiError(400, f"a bias of {bias:g}: at most {MOST_BIAS:g}, up or down", param="logit_bias")
    return kwargs


def _settings(served: ServedModel, body: ChatRequest | CompletionRequest) -> Settings:
    """skip and tolerance."""
    skip = _refusing("skip", served.check_skip, body.skip) if "skip" in body.model_fields_set else served.skip
    if body.tolerance is None:
        return skip, served.tolerance
    return skip, _refusing("tolerance", served.check_tolerance, body.tolerance)


def _refusing(param: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function whose ValueError is the client's mistake."""
    try:
        return function(*args)
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_skip" if isinstance(error, SkipError) else None, param) from error


def _check_logprobs(served: ServedModel, count: int) -> None:
    if not served.logits_all:
        raise ApiError(400, "logprobs need the server to be started with --logits-all", param="logprobs")
    if count > MOST_LOGPROBS:
        raise ApiError(400, f"{count} logprobs a token; at most {MOST_LOGPROBS} are given", param="logprobs")


def _check_grammar(body: ChatRequest | CompletionRequest, grammar: str) -> None:
    """What llama.cpp refuses in a grammar is known when the answer's turn comes."""
    if body.min_tokens > 0:  # the grammar may be at its end before
        raise ApiError(400, "min_tokens cannot be combined with a grammar, a JSON schema or a chosen tool", param="min_tokens")
    _refusing("grammar", check_text, grammar)


def _check_length(served: ServedModel, n_tokens: int) -> None:
    if n_tokens > served.longest:
        raise too_long(n_tokens, served.longest, served.llm.n_ctx())


def tokens_of(served: ServedModel, text: str, most: int | None = None, param: str = "prompt") -> list[int]:
    """The tokens of a text. Raises ApiError for more than may be, before all of a long text is read."""
    limit = served.longest if most is None else most
    tokenize = functools.partial(served.llm.tokenize, add_bos=True, special=True)
    raw = _refusing(param, text.encode, "utf-8")
    if _refusing(param, least_tokens, tokenize, raw, limit) > limit:
        raise too_long(f"more than {limit}", limit, served.llm.n_ctx(), param)
    return _refusing(param, tokenize, raw)  # type: ignore[no-any-return]


def _prompt_tokens(served: ServedModel, prompt: str | list[int]) -> list[int]:
    """The tokens of a prompt. Raises ApiError for tokens that the model does not have: llama.cpp ends the process for them."""
    if not isinstance(prompt, str):
        _check_length(served, len(prompt))
        n_vocab = served.llm.n_vocab()
        for token in prompt:
            if not 0 <= token < n_vocab:
                raise ApiError(400, f"{token} is not a token of this model: 0 to {n_vocab - 1}", param="prompt")
    tokens = tokens_of(served, prompt) if isinstance(prompt, str) else prompt
    if not tokens:
        raise ApiError(400, "the prompt has no tokens", param="prompt")
    return tokens


# -- the prompt of a chat -----------------------------------------------------------------------------------------------


class _Rendered(BaseException):
    """Not an Exception: no handler catches it."""


class _PromptOnly:
    """Stands in for the model while a chat handler makes its prompt: it stops where the answer would begin."""

    def __init__(self, served: ServedModel) -> None:
        self._served, self._llm = served, served.llm

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        tokens_of(self._served, text.decode("utf-8"), param="messages")
        return self._llm.tokenize(text, add_bos=add_bos, special=special)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def create_completion(self, prompt: str | list[int], **kwargs: Any) -> Any:
        raise _Rendered(prompt, kwargs.get("grammar"))


class _TextOnly(_PromptOnly):
    """Stops where the prompt would be tokenised."""

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        raise _Rendered(text.decode("utf-8"), None)


def _text_of(served: ServedModel, kwargs: dict[str, Any], messages: list[dict[str, Any]]) -> str:
    """What the model's chat template writes of these messages, without tools."""
    nothing = dict.fromkeys(("tools", "tool_choice", "response_format", "grammar"))
    return str(_render(served, {**kwargs, **nothing, "messages": messages}, _TextOnly)[0])


def _render(
    served: ServedModel, kwargs: dict[str, Any], stand_in: type[_PromptOnly] = _PromptOnly
) -> tuple[str | list[int], Any]:
    """The prompt and the grammar that the model's chat handler makes of a request."""
    llm = served.llm
    handler = llm.chat_handler or llm._chat_handlers.get(llm.chat_format) or get_chat_completion_handler(llm.chat_format)
    try:
        with exact_schemas():
            handler(llama=stand_in(served), **kwargs)
    except _Rendered as rendered:
        prompt, grammar = rendered.args
        return prompt, grammar
    except ApiError:
        raise
    except Exception as error:  # templates may stumble over anything that they did not expect
        raise ApiError(400, f"the chat template of this model refuses these messages: {error}", param="messages") from error
    raise ApiError(400, f"chat format {llm.chat_format!r} cannot be served")
