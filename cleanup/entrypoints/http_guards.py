"""Who may call the HTTP API, how often and with how much: ASGI middleware before any route."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import anyio
import orjson
from starlette.responses import JSONResponse, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
PROBLEM_JSON = "application/problem+json"
# What answers without a token: the page has no data in it, the others none to hide.
OPEN_PATHS = frozenset({"/", "/healthz"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_BURST_S = 2.0
_MAX_CLIENTS = 4096


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """An error as RFC 9457 has it, with the one clear line in ``detail``."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(body, status, headers, PROBLEM_JSON)


def answer(content: Any) -> Response:
    """What may hold documents of any size and depth, which are handed on as they are."""
    return Response(orjson.dumps(content), media_type="application/json")


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


class TokenGuard:
    """Lets in who shows the bearer token. The comparison takes the same time wherever the tokens differ."""

    def __init__(self, app: App, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if (
            scope["type"] == "http"
            and scope["path"] not in OPEN_PATHS
            and not secrets.compare_digest(_header(scope, b"authorization"), self._expected)
        ):
            refusal = problem(
                401, "the API's token is missing or wrong; send Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


class OriginGuard:
    """Keeps web pages of other origins from calling an API that asks for no token, whatever name they reach it by.

    Args:
        hosts: Names and addresses the API is called by; None for any.
        origins: Other origins that may call it.
    """

    def __init__(self, app: App, hosts: Collection[str] | None, origins: Collection[str]) -> None:
        self._app, self._hosts, self._origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            host = _header(scope, b"host").decode("latin-1")
            if self._hosts is not None and _name_of(host) not in self._hosts:
                await problem(403, f"the API is not called {host!r} here; use its address")(scope, receive, send)
                return
            origin = _header(scope, b"origin").decode("latin-1")
            is_foreign = origin and origin not in self._origins and _place_of(origin) != host
            if is_foreign and scope["method"] not in _READING:
                await problem(403, f"pages of {origin} may not call this API; see --cors-origin")(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _place_of(origin: str) -> str:
    """``localhost:8000`` of ``http://localhost:8000``; empty if it is no origin."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _name_of(host: str) -> str:
    """``localhost`` of ``localhost:8000``, ``::1`` of ``[::1]:8000``; empty if it is more than name and port."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "" if parts.netloc == host and "@" not in host else ""
    except ValueError:
        return ""


def _is_json(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))


class BodyGuard:
    """Refuses bodies over a limit, announced or not, before they are in memory, and those that are no JSON."""

    def __init__(self, app: App, max_bytes: int) -> None:
        self._app, self._max = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = _header(scope, b"content-length")
        content = bytearray()
        is_too_long = announced.isdigit() and int(announced) > self._max
        while not is_too_long and scope["method"] not in _READING:
            message = await receive()
            content += message.get("body", b"")
            is_too_long = len(content) > self._max
            if message["type"] == "http.disconnect":
                return
            if not message.get("more_body", False):
                break
        if is_too_long:
            refusal = problem(413, f"the body is longer than {self._max} bytes", {"Connection": "close"})
            await refusal(scope, receive, send)
            return
        if content and not _is_json(_header(scope, b"content-type")):
            await problem(415, "the body has to be JSON, with Content-Type: application/json")(scope, receive, send)
            return
        body: bytes | None = bytes(content) if scope["method"] not in _READING else None

        async def replay() -> MutableMapping[str, Any]:
            nonlocal body
            if body is None:
                return await receive()
            message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        await self._app(scope, replay, send)


def group_of(address: str) -> str:
    """Whose address it is: of IPv6 one caller has as many as he likes, all with one prefix."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if known.version == 4 else str(ipaddress.ip_network((known, 64), strict=False))


class HeadGuard:
    """Answers HEAD wherever there is GET: with the same head, and no body."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        asked = {**scope, "method": "GET"}
        has_answered = asyncio.Event()

        async def receive_nothing() -> MutableMapping[str, Any]:
            await has_answered.wait()  # what streams a body stops when its caller is gone
            return {"type": "http.disconnect"}

        async def send_head(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                scope.update({k: v for k, v in asked.items() if k == "route"})
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                has_answered.set()

        await self._app(asked, receive_nothing, send_head)


class StreamGuard:
    """Takes it as no fault that a caller leaves a stream that has more for him; FastAPI would have it told as one."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        try:
            await self._app(scope, receive, send)
        except* anyio.BrokenResourceError:
            pass


class RateGuard:
    """At most so many requests a second from an address, twice as many at once (token bucket)."""

    def __init__(self, app: App, per_second: float) -> None:
        self._app, self._rate = app, per_second
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and scope["path"] != "/healthz" and not self._take(scope):
            refusal = problem(429, f"more than {self._rate:g} requests a second; slow down", {"Retry-After": "1"})
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _take(self, scope: Scope) -> bool:
        client = group_of((scope.get("client") or ("",))[0])
        now = time.monotonic()
        level, since = self._buckets.pop(client, (self._rate * _BURST_S, now))
        level = min(level + (now - since) * self._rate, self._rate * _BURST_S)
        is_allowed = level >= 1
        self._buckets[client] = (level - 1 if is_allowed else level, now)
        if len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return is_allowed
