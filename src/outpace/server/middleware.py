"""The doors in front of the application (ASGI middleware): who may come in."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from outpace.server.client import presented_keys
from outpace.server.dialect import error_response
from outpace.server.errors import APIError
from outpace.server.settings import is_loopback

OPEN_PATHS = frozenset({"/", "/health"})
"""Answered without a key, for probes."""


class LoopbackOnly:
    """Refuses requests that a web page sends through the user's browser to a loopback server.

    A page from elsewhere can point its own name at 127.0.0.1 (DNS rebinding) or post a form: the
    first shows in the Host header, the second in the Origin.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and pass on (ASGI)."""
        error = _check_local(Headers(scope=scope)) if scope["type"] == "http" else None
        await (error_response(error, scope) if error else self._app)(scope, receive, send)


def _check_local(headers: Headers) -> APIError | None:
    host, origin = headers.get("host"), headers.get("origin")
    if host is not None and not is_loopback(_hostname("//" + host)):
        message = "this server listens on loopback; the Host header must name it, e.g. localhost"
        return APIError(403, message, code="host_not_allowed")
    if origin is not None and origin.startswith(("http:", "https:")) and not is_loopback(_hostname(origin)):
        return APIError(403, "requests from other sites' pages are refused", code="origin_not_allowed")
    return None


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class KeyAuth:
    """Asks every request, but those to `OPEN_PATHS`, for `Authorization: Bearer KEY` or `x-api-key: KEY`."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and pass on (ASGI)."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._knows(scope):
            error = APIError(
                401,
                "a valid API key is needed: Authorization: Bearer KEY, or x-api-key: KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
            await error_response(error, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        # Constant time, or the answer's delay would tell how much of a guess is right. Headers are latin-1.
        return any(
            hmac.compare_digest(key.encode("latin-1"), self._expected)
            for key in presented_keys(Headers(scope=scope))
        )
