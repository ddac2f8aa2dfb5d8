"""`POST /v1/responses`, its websocket, and what was stored of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from outpace.server.body import read_json
from outpace.server.client import client_scope
from outpace.server.deadlines import deadline_of
from outpace.server.encoding import json_response
from outpace.server.errors import APIError
from outpace.server.model_pool import ModelPool
from outpace.server.openai.responses.create import (
    ContextExceededError,
    Memory,
    found,
    read_request,
    start_response,
)
from outpace.server.openai.responses.input_items import listed_items, page_of
from outpace.server.openai.responses.schema import CountRequest, ResponseRequest
from outpace.server.openai.responses.socket import ResponseSocket
from outpace.server.openai.responses.store import ResponseStore
from outpace.server.openapi import EVENTS, OPENAI_ERRORS, described
from outpace.server.sse import EventStream

_FIELDS = ("id", "object", "created_at", "status", "model", "output")


def responses_router(models: ModelPool) -> APIRouter:
    """The routes over `models`."""
    router = APIRouter(prefix="/v1/responses", responses=OPENAI_ERRORS)
    store = ResponseStore()

    def memory(connection: HTTPConnection, *, keeps: bool = True) -> Memory:
        scope = client_scope(connection)

        def keep(response: dict[str, Any], messages: list[dict[str, Any]], body: ResponseRequest) -> None:
            if keeps:
                store.put(response, messages, scope, listed_items(body))

        return Memory(
            scope,
            lambda response_id: store.get(response_id, scope),
            lambda item_id: store.item(item_id, scope),
            keep,
        )

    extra = described(*_FIELDS, body=ResponseRequest, stream=EVENTS)

    @router.post("", openapi_extra=extra, response_class=Response)
    async def create(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Answer; a stream of server-sent events with `stream`."""
        body = await read_json(request, ResponseRequest, models.settings)
        num_chars = _num_chars(request, models)
        keeps = body.store is not False
        kept, deadline = memory(request, keeps=keeps), deadline_of(request, body.deadline_ms)
        async with models.lease(body.model, deadline=deadline) as (served, name):
            try:
                answer, generation = await start_response(served, name, body, kept, num_chars, deadline)
            except ContextExceededError as error:
                if not body.stream:
                    raise
                return Response(error.events, media_type=EVENTS)
        if body.stream:
            return EventStream(
                answer.events(generation), generation, models.settings.heartbeat, answer.failed
            )
        async with generation.cancelled_on_disconnect(request.receive):
            return json_response(await answer.whole(generation))

    @router.websocket("")
    async def converse(socket: WebSocket) -> None:  # pyright: ignore[reportUnusedFunction] - a route
        """Answer one `response.create` after the other on one connection."""
        await ResponseSocket(models, memory(socket), socket).run()

    @router.post(
        "/input_tokens",
        openapi_extra=described("object", "input_tokens", body=CountRequest),
        response_class=Response,
    )
    async def count(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Count the tokens of a request's prompt."""
        body = await read_json(request, CountRequest, models.settings)
        async with models.lease(body.model, deadline=deadline_of(request, None)) as (served, name):
            read = await read_request(served, name, body, memory(request), _num_chars(request, models))
        return json_response({"object": "response.input_tokens", "input_tokens": len(read.prompt.token_ids)})

    _add_stored(router, store, memory)
    return router


def _num_chars(request: Request, models: ModelPool) -> int:
    """The body's length, as good a measure of the work as its texts. Without one it came in chunks."""
    return int(request.headers.get("content-length", models.settings.max_body_bytes))


def _add_stored(router: APIRouter, store: ResponseStore, memory: Callable[[HTTPConnection], Memory]) -> None:
    """The routes of stored responses."""

    @router.get("/{response_id}", openapi_extra=described(*_FIELDS))
    async def get(response_id: str, request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """A stored response."""
        return json_response(found(memory(request), response_id, "response_id").response)

    @router.get("/{response_id}/input_items", openapi_extra=described("object", "data", "has_more"))
    async def input_items(response_id: str, request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """The items of a stored response's own input, the last first."""
        stored = found(memory(request), response_id, "response_id")
        return json_response(page_of(stored.items, request.query_params))

    @router.post("/{response_id}/cancel", openapi_extra=described(*_FIELDS))
    async def cancel(response_id: str, request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Refuse: what can be cancelled are responses in the background, and there are none."""
        found(memory(request), response_id, "response_id")
        message = "only a response in the background can be cancelled; close the connection of any other"
        raise APIError(400, message, param="response_id", code="invalid_request")

    @router.delete("/{response_id}", openapi_extra=described("id", "object", "deleted"))
    async def remove(response_id: str, request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Forget a stored response."""
        found(memory(request), response_id, "response_id")
        store.remove(response_id, client_scope(request))
        return {"id": response_id, "object": "response", "deleted": True}
