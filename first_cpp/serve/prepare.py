"""From a request to the work it means. All that can be wrong with it is said here, before it waits in line."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llama_cpp.llama_chat_format import get_chat_completion_handler
from llama_cpp.server.app import prepare_request_resources

from ..errors import SkipError
from ..llama import Llama
from ..runtime.grammar import check_text
from ..runtime.structured import check_forced_tool, exact_schemas, plain_format
from ..skip import Skip
from .api_errors import ApiError, too_long
from .requests import ChatRequest, CompletionRequest, EmbeddingRequest
from .served import Served

MOST_LOGPROBS = 100
MOST_BIAS = 1e6  # more could leave a grammar no token with a finite logit
_NOT_FOR_LLAMA = {"n", "best_of", "logit_bias_type", "user", "min_tokens", "skip", "max_completion_tokens"}


@dataclass(frozen=True)
class Work:
    """What the worker thread does. make: gives the answer, or its chunks. skip: set before, where layers can be left out."""

    make: Callable[[], Any]
    stream: bool
    skip: Skip = None
    routed: bool = True


def prepare_chat(served: Served, body: ChatRequest) -> Work:
    """Raises ApiError for a request that cannot be answered."""
    kwargs = _arguments(served, body)
    if body.logprobs:
        kwargs["top_logprobs"] = body.top_logprobs or 0
        _check_logprobs(served, kwargs["top_logprobs"])
    kwargs["response_format"] = _refusing("response_format", plain_format, kwargs.get("response_format"))
    _refusing("tools", check_forced_tool, kwargs)
    prompt, grammar = _render(served.llm, kwargs)
    if grammar is not None:
        _check_grammar(body, grammar._grammar)
    _check_length(served, _count(served.llm, prompt) if isinstance(prompt, str) else len(prompt))
    make = functools.partial(served.llm.create_chat_completion, **kwargs)
    return Work(make, bool(body.stream), _skip(served, body))


def prepare_completion(served: Served, body: CompletionRequest) -> Work:
    """Raises ApiError for a request that cannot be answered."""
    kwargs = _arguments(served, body)
    if isinstance(body.prompt, list):
        if len(body.prompt) > 1:
            raise ApiError(400, f"{len(body.prompt)} prompts; one a request is answered", param="prompt")
        kwargs["prompt"] = body.prompt[0] if body.prompt else ""
    if body.best_of not in (None, 1):
        raise ApiError(400, f"best_of={body.best_of}: one answer a request is made", param="best_of")
    if body.logprobs is not None:
        _check_logprobs(served, body.logprobs)
    if body.grammar is not None:
        _check_grammar(body, body.grammar)
    infill = 0 if body.suffix is None else _count(served.llm, body.suffix) + 3  # three tokens mark its parts
    _check_length(served, _count(served.llm, kwargs["prompt"]) + infill)
    return Work(functools.partial(served.llm.create_completion, **kwargs), bool(body.stream), _skip(served, body))


def prepare_embedding(served: Served, body: EmbeddingRequest) -> Work:
    """Raises ApiError for a request that cannot be answered."""
    llm = served(body.model)
    if not served.embeddings:
        raise ApiError(400, "embeddings need the server to be started with --embeddings")
    texts = [body.input] if isinstance(body.input, str) else body.input
    for text in texts:
        if (n_tokens := _count(llm, text)) > min(served.max_prompt, llm.n_batch):
            raise too_long(n_tokens, min(served.max_prompt, llm.n_batch), llm.n_ctx())
    return Work(functools.partial(llm.create_embedding, body.input, model=served.name), stream=False, routed=False)


# -- checks -------------------------------------------------------------------------------------------------------------


def _arguments(served: Served, body: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """The keywords of `Llama`'s method, as llama_cpp.server makes them."""
    llm = served(body.model)
    if body.n not in (None, 1):
        raise ApiError(400, f"n={body.n}: one answer a request is made", param="n")
    kwargs = body.model_dump(exclude=_NOT_FOR_LLAMA)
    kwargs["model"] = served.name
    if kwargs.get("seed") is None:
        kwargs["seed"] = random.SystemRandom().randrange(2**31)  # llama_cpp's own default is the same for every request
    _refusing("logit_bias", prepare_request_resources, body, served, body.model, kwargs)
    for token, bias in (kwargs.get("logit_bias") or {}).items():
        if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < llm.n_vocab()):
            raise ApiError(400, f"{token!r} is no token of this model: 0 to {llm.n_vocab() - 1}", param="logit_bias")
        if abs(bias) > MOST_BIAS:
            raise ApiError(400, f"a bias of {bias:g}: at most {MOST_BIAS:g}, up or down", param="logit_bias")
    return kwargs  # type: ignore[no-any-return]


def _skip(served: Served, body: ChatRequest | CompletionRequest) -> Skip:
    if "skip" not in body.model_fields_set:
        return served.skip
    return _refusing("skip", served.check_skip, body.skip)  # type: ignore[no-any-return]


def _refusing(param: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function whose ValueError is the client's mistake."""
    try:
        return function(*args)
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_skip" if isinstance(error, SkipError) else None, param) from error


def _check_logprobs(served: Served, count: int) -> None:
    if not served.logits_all:
        raise ApiError(400, "logprobs need the server to be started with --logits-all", param="logprobs")
    if count > MOST_LOGPROBS:
        raise ApiError(400, f"{count} logprobs a token; at most {MOST_LOGPROBS} are given", param="logprobs")


def _check_grammar(body: ChatRequest | CompletionRequest, grammar: str) -> None:
    """What llama.cpp refuses in a grammar is known when the answer's turn comes."""
    if body.min_tokens > 0:  # the grammar may be at its end before
        raise ApiError(400, "min_tokens cannot be combined with a grammar, a JSON schema or a chosen tool", param="min_tokens")
    _refusing("grammar", check_text, grammar)


def _check_length(served: Served, n_tokens: int) -> None:
    most = min(served.max_prompt, served.llm.n_ctx() - 1)
    if n_tokens > most:
        raise too_long(n_tokens, most, served.llm.n_ctx())


def _count(llm: Llama, text: str) -> int:
    return len(_refusing("prompt", lambda: llm.tokenize(text.encode("utf-8"), add_bos=True, special=True)))


# -- the prompt of a chat -----------------------------------------------------------------------------------------------


class _Rendered(BaseException):
    """Not an Exception: no handler catches it."""


class _PromptOnly:
    """Stands in for the model while a chat handler makes its prompt: it stops where the answer would begin."""

    def __init__(self, llm: Llama) -> None:
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def create_completion(self, prompt: str | list[int], **kwargs: Any) -> Any:
        raise _Rendered(prompt, kwargs.get("grammar"))


def _render(llm: Llama, kwargs: dict[str, Any]) -> tuple[str | list[int], Any]:
    """The prompt and the grammar that the model's chat handler makes of a request."""
    handler = llm.chat_handler or llm._chat_handlers.get(llm.chat_format) or get_chat_completion_handler(llm.chat_format)
    try:
        with exact_schemas():
            handler(llama=_PromptOnly(llm), **kwargs)
    except _Rendered as rendered:
        prompt, grammar = rendered.args
        return prompt, grammar
    except Exception as error:  # templates may stumble over anything that they did not expect
        raise ApiError(400, f"the chat template of this model refuses these messages: {error}", param="messages") from error
    raise ApiError(400, f"chat format {llm.chat_format!r} cannot be served")
