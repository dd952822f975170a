"""Errors as OpenAI clients read them: a status and one JSON object."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastapi.responses import JSONResponse


class ApiError(Exception):
    """A request that cannot be answered. status: of HTTP. code, param: the fields that OpenAI clients read.

    >>> ApiError(400, "n=2: one answer a request is made", param="n").body["error"]["type"]
    'invalid_request_error'
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def unknown_model(given: str, known: Collection[str]) -> ApiError:
    names = ", ".join(map(repr, known))
    return ApiError(404, f"the model {given[:100]!r} does not exist; this server has {names}", "model_not_found", "model")


def not_loadable(name: str) -> ApiError:
    return ApiError(500, f"the model {name!r} cannot be loaded; the server's log says why", "model_not_loaded", "model")


def too_long(n_tokens: int | str, most: int, n_ctx: int, param: str = "messages") -> ApiError:
    message = f"the prompt has {n_tokens} tokens, at most {most} are allowed (context {n_ctx}); make it shorter"
    return ApiError(400, message, "context_length_exceeded", param)


def queue_full(waiting: int, seconds: int) -> ApiError:
    message = f"{waiting} requests are waiting already, as many as may; try again in {seconds} s"
    return ApiError(503, message, "queue_full", headers={"Retry-After": str(seconds)})


def stopping() -> ApiError:
    return ApiError(503, "the server is stopping", "server_stopping", headers={"Retry-After": "30"})
