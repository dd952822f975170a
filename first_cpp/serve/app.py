"""The application: OpenAI's routes and llama_cpp.server's, what Prometheus and health checks read, and the page."""

from __future__ import annotations

import functools
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from .._version import __version__
from .access import AccessControl, AccessRules
from .answer_response import AnswerResponse
from .api_errors import ApiError
from .hosted_models import HostedModels
from .prepare import Job, Order, prepare_chat, prepare_completion, prepare_embedding, tokens_of
from .requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
    parse_request,
)
from .responses import ResponseRequest, prepare_response
from .served_model import ServedModel
from .worker import Worker

MOST_TOKENS = 1 << 14  # of a text that is only tokenised; four times the longest prompt, where that is more
PAGE = Path(__file__).with_name("page")
_PAGE_FILES = ("app.js", "chats.js", "dial.js", "markdown.js", "models.js", "server.js", "view.js", "style.css", "icon.svg")
PAGE_ROUTES = {"/": "index.html", **{f"/page/{name}": name for name in _PAGE_FILES}}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def build(worker: Worker, rules: AccessRules) -> ASGIApp:
    """The whole server as one ASGI application."""
    # docs_url: FastAPI's own pages load scripts from another host
    app = FastAPI(title="first_cpp", version=__version__, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_answers(app, worker)
    _add_models(app, worker)
    _add_vocabulary(app, worker)
    _add_state(app, worker, rules)
    _add_page(app)
    routes = {route.path for route in app.routes if hasattr(route, "path")}
    guarded: ASGIApp = AccessControl(app, rules, worker.metrics, routes, open_routes={"/health", *PAGE_ROUTES})
    if rules.origins:
        return CORSMiddleware(
            guarded,
            allow_origins=rules.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    return guarded


def _add_answers(app: FastAPI, worker: Worker) -> None:
    """The routes that compute. llama_cpp.server's own would start a stream before they know whether it can be answered,
    and notice only between two tokens that a client has gone."""

    def add(path: str, kind: type[Any], prepare: Callable[[ServedModel, Any], Job], listed: bool = True) -> None:
        def order(body: bytes) -> Order:
            request = parse_request(kind, body)
            if not listed:
                request.model = None
            return order_of(worker.models, request, prepare)

        async def answer(request: Request) -> Response:
            return AnswerResponse(worker, await worker.prepare(order, await request.body()))

        schema = {"requestBody": {"content": {"application/json": {"schema": kind.model_json_schema()}}}}
        app.post(path, response_model=None, include_in_schema=listed, openapi_extra=schema, name=kind.__name__)(answer)

    add("/v1/chat/completions", ChatRequest, prepare_chat)
    add("/v1/completions", CompletionRequest, prepare_completion)
    add("/v1/engines/copilot-codex/completions", CompletionRequest, prepare_completion, listed=False)
    add("/v1/embeddings", EmbeddingRequest, prepare_embedding)
    add("/v1/responses", ResponseRequest, prepare_response)


def order_of(models: HostedModels, request: Any, prepare: Callable[[ServedModel, Any], Job]) -> Order:
    """The order of a request, with its job where its model is loaded. Raises ApiError for what is known to be wrong by now."""
    name = models.name_of(request.model)
    made = functools.partial(_named, prepare, request)
    stream = bool(getattr(request, "stream", False))
    with models.using(name) as loaded:
        if loaded is None:
            return Order(name, stream, made)
        return Order(name, stream, made, loaded.served, made(loaded.served))


def _named(prepare: Callable[[ServedModel, Any], Job], request: Any, served: ServedModel) -> Job:
    return prepare(served, request)


def _add_models(app: FastAPI, worker: Worker) -> None:
    models = worker.models

    def about(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": models.created, "owned_by": "me", "permissions": []}

    @app.get("/v1/models", response_model=None)
    async def every_model() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [about(name) for name in models.names]})

    @app.get("/v1/models/{name:path}", response_model=None)
    async def one_model(name: str) -> JSONResponse:
        if not name:  # /v1/models/
            return await every_model()
        return JSONResponse(about(models.name_of(name if name in models.names else name.rstrip("/"))))


def _add_vocabulary(app: FastAPI, worker: Worker) -> None:
    """llama_cpp.server's /extras, which only need the vocabulary: no turn where their model is loaded."""

    def add(path: str, kind: type[Any], find: Callable[[ServedModel, Any], dict[str, Any]]) -> None:
        def prepare(served: ServedModel, request: Any) -> Job:
            found = find(served, request)
            return Job(lambda: found, stream=False, routed=False)

        def order(body: bytes) -> Order:
            return order_of(worker.models, parse_request(kind, body), prepare)

        async def answer(request: Request) -> Response:
            asked = await worker.prepare(order, await request.body())
            return AnswerResponse(worker, asked) if asked.job is None else JSONResponse(asked.job.make())

        app.post(path, response_model=None, name=path)(answer)

    def tokens(served: ServedModel, request: TokenizeRequest) -> list[int]:
        return tokens_of(served, request.input, max(MOST_TOKENS, 4 * served.longest), "input")

    def text(served: ServedModel, request: DetokenizeRequest) -> str:
        llm = served.llm
        for token in request.tokens:
            if not 0 <= token < llm.n_vocab():  # llama.cpp ends the process for others
                raise ApiError(400, f"{token} is not a token of this model: 0 to {llm.n_vocab() - 1}", param="tokens")
        return llm.detokenize(request.tokens).decode("utf-8", "replace")

    add("/extras/tokenize", TokenizeRequest, lambda served, request: {"tokens": tokens(served, request)})
    add("/extras/tokenize/count", TokenizeRequest, lambda served, request: {"count": len(tokens(served, request))})
    add("/extras/detokenize", DetokenizeRequest, lambda served, request: {"text": text(served, request)})


def _add_state(app: FastAPI, worker: Worker, rules: AccessRules) -> None:
    models = worker.models

    @app.get("/health", response_model=None)
    async def health() -> JSONResponse:
        closed = worker.queue.closed
        loaded = models.loaded
        state: dict[str, Any] = {
            "status": "stopping" if closed else "ok",
            "model": models.names[0],
            "models": models.names,
            "loaded": None if loaded is None else loaded.served.name,
            "answering": worker.queue.busy,
            "queue": worker.queue.waiting,
            **models.facts,
            "key": rules.key is not None,
        }
        return JSONResponse(state, 503 if closed else 200)

    @app.get("/v1/fidelity", response_model=None)
    async def fidelity() -> JSONResponse:
        return JSONResponse(models.measured.as_json())

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        return Response(worker.metrics.text(), media_type=worker.metrics.content_type)


def _add_page(app: FastAPI) -> None:
    for route, name in PAGE_ROUTES.items():
        content = (PAGE / name).read_bytes()
        kind = mimetypes.guess_type(name)[0]

        async def file(content: bytes = content, kind: str | None = kind) -> Response:
            return Response(content, media_type=kind, headers=PAGE_HEADERS)

        app.get(route, response_model=None, include_in_schema=False)(file)


def _add_errors(app: FastAPI) -> None:
    """Every error has the shape that OpenAI clients read."""

    @app.exception_handler(ApiError)
    async def ours(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        about = f"{request.method} {request.url.path}: {error.detail}"
        return ApiError(error.status_code, about, headers=dict(error.headers or {})).response()

    @app.exception_handler(UnicodeError)
    async def text(_: Request, error: UnicodeError) -> Response:
        return ApiError(400, f"text that is not Unicode: {error}").response()

    @app.exception_handler(Exception)
    async def rest(_: Request, error: Exception) -> Response:
        return ApiError(500, f"the server failed: {type(error).__name__}; its log has more").response()
