"""Middleware in front of every route: checks the key, the browser's origin and the body's size, and counts requests."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..cli.options import is_local
from .api_errors import ApiError
from .prometheus import Metrics


@dataclass(frozen=True)
class AccessRules:
    """key: what clients must send, None for no key. max_body: bytes. origins: of other web pages that may ask.
    body_seconds: within which a body must have come.

    local_only: without a key, requests must be addressed to this machine by its own name. Otherwise a web page could
    reach the server through the browser of somebody at this machine, under a host name of its own.
    """

    key: str | None
    max_body: int
    origins: tuple[str, ...] = ()
    local_only: bool = True
    body_seconds: float = 30.0


class AccessControl:
    """ASGI middleware that refuses before anything is read or computed."""

    def __init__(
        self, app: ASGIApp, rules: AccessRules, metrics: Metrics, routes: Collection[str], open_routes: Collection[str]
    ):
        """routes: paths with a count of their own. open_routes: those that need no key."""
        self._app = app
        self._rules = rules
        self._metrics = metrics
        self._routes = frozenset(routes)
        self._open = frozenset(open_routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # nothing but HTTP is served
        if scope.get("method") == "HEAD":  # as health checks ask; uvicorn sends no body to it
            scope = {**scope, "method": "GET"}
        status = 499  # the client went away before there was a status

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._serve(scope, receive, counted)
        finally:
            self._metrics.request(scope["path"] if scope["path"] in self._routes else "other", status)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_browser(headers)
            if scope["path"] not in self._open:
                self._check_key(headers)
            body = await asyncio.wait_for(self._read(headers, receive), self._rules.body_seconds)
        except asyncio.TimeoutError:
            await self._too_slow().response()(scope, receive, send)
            return
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is None:
            return

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message: Message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        await self._app(scope, replay, send)

    def _check_key(self, headers: Headers) -> None:
        if self._rules.key is None:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), self._rules.key.encode())
        if kind.lower() != "bearer" or not right:
            message = "a wrong API key" if given else "an API key is needed: `Authorization: Bearer KEY`"
            raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_browser(self, headers: Headers) -> None:
        """Without a key, a page of another site must not use the server through somebody's browser."""
        if self._rules.key is not None:
            return
        host = headers.get("host", "")
        if self._rules.local_only and not is_local(_split(f"//{host}").hostname or ""):
            raise ApiError(403, f"addressed to {host!r}: without an API key only localhost is answered", "wrong_host")
        origin = headers.get("origin")
        allowed = {"*", origin}.intersection(self._rules.origins)
        if origin and not allowed and _split(origin).netloc != host:
            option = origin if "://" in origin else "'*'"  # null: a file, or a sandbox, which has no name
            raise ApiError(403, f"a page of {origin} may not use this server; start it with --cors {option}", "wrong_origin")

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None when the client goes away first."""
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._rules.max_body:
            raise self._too_large(length)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self._rules.max_body:
                raise self._too_large(f"more than {self._rules.max_body}")
            if not message.get("more_body", False):
                return bytes(body)

    def _too_slow(self) -> ApiError:
        message = f"the body did not come within {self._rules.body_seconds:g} seconds"
        return ApiError(408, message, "body_too_slow", headers={"Connection": "close"})

    def _too_large(self, length: str) -> ApiError:
        message = f"the body has {length} bytes, at most {self._rules.max_body} are allowed"
        return ApiError(413, message, "body_too_large", headers={"Connection": "close"})


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
