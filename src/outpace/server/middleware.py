"""The doors in front of the application (ASGI middleware): who may come in."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outpace.server.client import CLIENT, client_scope, presented_keys
from outpace.server.dialect import error_response, speaks_anthropic
from outpace.server.errors import APIError
from outpace.server.key_ring import KeyRing
from outpace.server.limits import ClientLimits
from outpace.server.settings import is_loopback

OPEN_PATHS = frozenset({"/", "/health"})
"""Answered without a key, for probes."""
_REQUESTS = frozenset({"http", "websocket"})
_POLICY = 1008  # RFC 6455: a websocket that may not go on


class LoopbackOnly:
    """Refuses requests that a web page sends through the user's browser to a loopback server.

    A page from elsewhere can point its own name at 127.0.0.1 (DNS rebinding) or post a form: the
    first shows in the Host header, the second in the Origin. Pages of `origins` may come in.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str] = ()) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and pass on (ASGI)."""
        error = _check_local(Headers(scope=scope), self._origins) if scope["type"] in _REQUESTS else None
        await (error_response(error, scope) if error else self._app)(scope, receive, send)


def _check_local(headers: Headers, origins: frozenset[str]) -> APIError | None:
    host, origin = headers.get("host"), headers.get("origin")
    if host is not None and not is_loopback(_hostname("//" + host)):
        message = "this server listens on loopback; the Host header must name it, e.g. localhost"
        return APIError(403, message, code="host_not_allowed")
    web = origin is not None and origin.startswith(("http:", "https:")) and origin not in origins
    if web and not is_loopback(_hostname(origin or "")):
        return APIError(
            403,
            "requests from other sites' pages are refused; --cors-origin lets one in",
            code="origin_not_allowed",
        )
    return None


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class LimitHeaders:
    """Tells in the head of an answer what is left of the client's limits."""

    def __init__(self, app: ASGIApp, limits: ClientLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and add to the head (ASGI)."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                client = client_scope(HTTPConnection(scope))
                told = self._limits.headers(client, anthropic=speaks_anthropic(scope))
                MutableHeaders(scope=message).update(told)
            await send(message)

        await self._app(scope, receive, tell)


class KeyAuth:
    """Asks every request, but those to `OPEN_PATHS`, for `Authorization: Bearer KEY` or `x-api-key: KEY`.

    Whose key it was is left in the request's state for `client_scope`. A websocket is asked again with each
    message: it may outlive its key.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and pass on (ASGI)."""
        if scope["type"] in _REQUESTS and scope["path"] not in OPEN_PATHS:
            presented = presented_keys(Headers(scope=scope))
            client = self._keys.scope_of(presented)
            if client is None:
                await error_response(_unknown_key(), scope)(scope, receive, send)
                return
            scope.setdefault("state", {})[CLIENT] = client
            if scope["type"] == "websocket":
                receive = self._while_known(presented, receive, send)
        await self._app(scope, receive, send)

    def _while_known(self, presented: Sequence[str], receive: Receive, send: Send) -> Receive:
        async def checked() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and self._keys.scope_of(presented) is None:
                await send({"type": "websocket.close", "code": _POLICY, "reason": "the key was revoked"})
                return {"type": "websocket.disconnect", "code": _POLICY}
            return message

        return checked


def _unknown_key() -> APIError:
    return APIError(
        401,
        "a valid API key is needed: Authorization: Bearer KEY, or x-api-key: KEY",
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )
