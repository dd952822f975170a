"""The application: OpenAI's routes and llama_cpp.server's, what Prometheus and health checks read, and the page."""

from __future__ import annotations

import mimetypes
import time
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
from .prepare import Job, prepare_chat, prepare_completion, prepare_embedding, tokens_of
from .requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
    parse_request,
)
from .served_model import ServedModel
from .worker import Worker

MOST_TOKENS = 1 << 14  # of a text that is only tokenised; four times the longest prompt, where that is more
PAGE = Path(__file__).with_name("page")
_PAGE_FILES = ("app.js", "chats.js", "dial.js", "markdown.js", "server.js", "view.js", "style.css", "icon.svg")
PAGE_ROUTES = {"/": "index.html", **{f"/page/{name}": name for name in _PAGE_FILES}}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def build(served: ServedModel, worker: Worker, rules: AccessRules) -> ASGIApp:
    """The whole server as one ASGI application."""
    # docs_url: FastAPI's own pages load scripts from another host
    app = FastAPI(title="first_cpp", version=__version__, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_answers(app, served, worker)
    _add_vocabulary(app, served, worker)
    _add_state(app, served, worker, rules)
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


def _add_answers(app: FastAPI, served: ServedModel, worker: Worker) -> None:
    """The routes that compute. llama_cpp.server's own would start a stream before they know whether it can be answered,
    and notice only between two tokens that a client has gone."""

    def add(path: str, kind: type[Any], prepare: Callable[[ServedModel, Any], Job], listed: bool = True) -> None:
        def parse(body: bytes) -> Job:
            request = parse_request(kind, body)
            if not listed:
                request.model = None
            return prepare(served, request)

        async def answer(request: Request) -> Response:
            return AnswerResponse(worker, await worker.prepare(parse, await request.body()))

        schema = {"requestBody": {"content": {"application/json": {"schema": kind.model_json_schema()}}}}
        app.post(path, response_model=None, include_in_schema=listed, openapi_extra=schema, name=kind.__name__)(answer)

    add("/v1/chat/completions", ChatRequest, prepare_chat)
    add("/v1/completions", CompletionRequest, prepare_completion)
    add("/v1/engines/copilot-codex/completions", CompletionRequest, prepare_completion, listed=False)
    add("/v1/embeddings", EmbeddingRequest, prepare_embedding)


def _add_vocabulary(app: FastAPI, served: ServedModel, worker: Worker) -> None:
    """The routes that only need names and the vocabulary, so no turn: the models, and llama_cpp.server's /extras."""
    model = {"id": served.name, "object": "model", "created": int(time.time()), "owned_by": "me", "permissions": []}

    @app.get("/v1/models", response_model=None)
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/v1/models/{name:path}", response_model=None)
    async def one_model(name: str) -> JSONResponse:
        served(name)
        return JSONResponse(model)

    def tokens(body: bytes) -> list[int]:
        request = parse_request(TokenizeRequest, body)
        served(request.model)
        return tokens_of(served, request.input, max(MOST_TOKENS, 4 * served.longest), "input")

    def text(body: bytes) -> str:
        request = parse_request(DetokenizeRequest, body)
        llm = served(request.model)
        for token in request.tokens:
            if not 0 <= token < llm.n_vocab():  # llama.cpp ends the process for others
                raise ApiError(400, f"{token} is not a token of this model: 0 to {llm.n_vocab() - 1}", param="tokens")
        return llm.detokenize(request.tokens).decode("utf-8", "replace")

    @app.post("/extras/tokenize", response_model=None)
    async def tokenize(request: Request) -> JSONResponse:
        return JSONResponse({"tokens": await worker.prepare(tokens, await request.body())})

    @app.post("/extras/tokenize/count", response_model=None)
    async def count(request: Request) -> JSONResponse:
        return JSONResponse({"count": len(await worker.prepare(tokens, await request.body()))})

    @app.post("/extras/detokenize", response_model=None)
    async def detokenize(request: Request) -> JSONResponse:
        return JSONResponse({"text": await worker.prepare(text, await request.body())})


def _add_state(app: FastAPI, served: ServedModel, worker: Worker, rules: AccessRules) -> None:
    bytes_in_layers = served.bytes_in_layers()

    @app.get("/health", response_model=None)
    async def health() -> JSONResponse:
        closed = worker.queue.closed
        state: dict[str, Any] = {
            "status": "stopping" if closed else "ok",
            "model": served.name,
            "answering": worker.queue.busy,
            "queue": worker.queue.waiting,
            "n_layer": served.n_layer,
            "skip": served.skip,
            "max_skip": served.dial,
            "tolerance": served.default_tolerance,
            "routers": served.llm.routers is not None,
            "bytes_in_layers": bytes_in_layers,
            "key": rules.key is not None,
        }
        return JSONResponse(state, 503 if closed else 200)

    @app.get("/v1/fidelity", response_model=None)
    async def fidelity() -> JSONResponse:
        return JSONResponse(worker.idle.as_json())

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
