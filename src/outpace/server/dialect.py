"""Which API a request speaks, and answers that depend on it: errors and request ids."""

from __future__ import annotations

import uuid

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outpace.errors import OutpaceError
from outpace.server.anthropic.errors import anthropic_error
from outpace.server.deadlines import note_arrival
from outpace.server.errors import APIError, from_exception, internal_error
from outpace.server.ollama.answer import error_line

_OPENAI_PATHS = ("/v1/chat/", "/v1/completions", "/v1/responses", "/v1/embeddings")
_ANTHROPIC_PATHS = ("/v1/messages",)
_OLLAMA_PATHS = ("/api/",)


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request is in Anthropic's dialect: by its path, and where both have it, by its headers."""
    path: str = scope["path"]
    if path.startswith(_ANTHROPIC_PATHS):
        return True
    headers = Headers(scope=scope)
    return not path.startswith(_OPENAI_PATHS) and (
        "anthropic-version" in headers or "x-api-key" in headers or "anthropic-beta" in headers
    )


def request_id(scope: Scope) -> str:
    """The id that a request got at the door, for its answer and the log."""
    return scope["state"]["request_id"]


def _id_header(scope: Scope) -> tuple[str, str]:
    return "request-id" if speaks_anthropic(scope) else "x-request-id", request_id(scope)


def error_response(error: APIError, scope: Scope) -> Response:
    """The error as an HTTP response in the request's dialect."""
    if scope["path"].startswith(_OLLAMA_PATHS):
        return Response(error_line(error), error.status, error.headers, media_type="application/json")
    return anthropic_error(error, request_id(scope)) if speaks_anthropic(scope) else error.response()


class RequestIDs:
    """Gives every request an id, and tells it in the answer's head (ASGI middleware)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the request and pass on (ASGI)."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["request_id"] = f"req_{uuid.uuid4().hex}"
        if scope["type"] == "http":
            note_arrival(scope)
        header, name = _id_header(scope)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[header] = name
            await send(message)

        await self._app(scope, receive, tell)


def install(app: FastAPI) -> None:
    """Make `app` answer every error in the dialect of its request."""

    async def on_error(request: Request, error: Exception) -> Response:
        return error_response(from_exception(error), request.scope)

    async def on_defect(request: Request, _error: Exception) -> Response:
        # Raised again after this; the server then logs it and closes the connection, so it should say so.
        # It is answered outside of all middleware.
        answer = internal_error()
        answer.headers.update([("connection", "close"), _id_header(request.scope)])
        return error_response(answer, request.scope)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}"
        match error.status_code:
            case 404:
                api_error = APIError(404, f"no such address: {what}", code="unknown_url")
            case 405:
                api_error = APIError(405, f"method not allowed: {what}", code="method_not_allowed")
            case status:
                api_error = APIError(status, str(error.detail))
        api_error.headers.update(error.headers or {})
        return error_response(api_error, request.scope)

    app.add_exception_handler(APIError, on_error)
    app.add_exception_handler(OutpaceError, on_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_defect)
