"""The application: llama_cpp.server's routes, those that compute made ours, and the page."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

import llama_cpp.server.app as upstream
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from llama_cpp.server.types import DetokenizeInputRequest, DetokenizeInputResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from .._version import __version__
from .access import AccessControl, AccessRules
from .answer_response import AnswerResponse
from .api_errors import ApiError
from .prepare import prepare_chat, prepare_completion, prepare_embedding
from .requests import ChatRequest, CompletionRequest, EmbeddingRequest
from .served_model import ServedModel
from .worker import Worker

PAGE = Path(__file__).with_name("page")
PAGE_ROUTES = {"/": "index.html", "/page/app.js": "app.js", "/page/style.css": "style.css", "/page/icon.svg": "icon.svg"}
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
    _add_upstream(app, served)
    _add_state(app, served, worker, rules)
    _add_page(app)
    routes = {route.path for route in app.routes if hasattr(route, "path")}
    guarded: ASGIApp = AccessControl(app, rules, worker.metrics, routes, open_routes={"/health", *PAGE_ROUTES})
    if rules.origins:
        return CORSMiddleware(
            guarded, allow_origins=rules.origins, allow_methods=["GET", "POST"], allow_headers=["Authorization", "Content-Type"]
        )
    return guarded


def _add_answers(app: FastAPI, served: ServedModel, worker: Worker) -> None:
    """The routes that compute. llama_cpp.server's own would start a stream before they know whether it can be answered,
    and notice only between two tokens that a client has gone."""

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest) -> Response:
        return AnswerResponse(worker, await run_in_threadpool(prepare_chat, served, body))

    @app.post("/v1/completions", response_model=None)
    async def completion(body: CompletionRequest) -> Response:
        return AnswerResponse(worker, await run_in_threadpool(prepare_completion, served, body))

    @app.post("/v1/engines/copilot-codex/completions", response_model=None, include_in_schema=False)
    async def copilot(body: CompletionRequest) -> Response:
        body.model = None
        return AnswerResponse(worker, await run_in_threadpool(prepare_completion, served, body))

    @app.post("/v1/embeddings", response_model=None)
    async def embedding(body: EmbeddingRequest) -> Response:
        return AnswerResponse(worker, await run_in_threadpool(prepare_embedding, served, body))


def _add_upstream(app: FastAPI, served: ServedModel) -> None:
    """The routes of llama_cpp.server that only read the vocabulary and names, which needs no turn."""

    async def proxy() -> ServedModel:
        return served

    app.dependency_overrides[upstream.get_llama_proxy] = proxy
    app.get("/v1/models")(upstream.get_models)
    app.post("/extras/tokenize")(upstream.tokenize)
    app.post("/extras/tokenize/count")(upstream.count_query_tokens)

    @app.post("/extras/detokenize")
    async def detokenize(body: DetokenizeInputRequest) -> DetokenizeInputResponse:
        llm = served(body.model)
        for token in body.tokens:
            if not 0 <= token < llm.n_vocab():  # llama.cpp ends the process for others
                raise ApiError(400, f"{token} is no token of this model: 0 to {llm.n_vocab() - 1}", param="tokens")
        return DetokenizeInputResponse(text=llm.detokenize(body.tokens).decode("utf-8", "replace"))


def _add_state(app: FastAPI, served: ServedModel, worker: Worker, rules: AccessRules) -> None:
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
            "key": rules.key is not None,
        }
        return JSONResponse(state, 503 if closed else 200)

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

    @app.exception_handler(RequestValidationError)
    async def body(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return ApiError(400, f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][1]}").response()
        where = ".".join(str(part) for part in first["loc"][1:])
        more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
        return ApiError(400, f"{where or 'body'}: {first['msg']}{more}", param=where or None).response()

    @app.exception_handler(UnicodeError)
    async def text(_: Request, error: UnicodeError) -> Response:
        return ApiError(400, f"text that is not Unicode: {error}").response()

    @app.exception_handler(Exception)
    async def rest(_: Request, error: Exception) -> Response:
        return ApiError(500, f"the server failed: {type(error).__name__}; its log has more").response()
