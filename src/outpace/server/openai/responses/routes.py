"""`POST /v1/responses`, its websocket, and what was stored of them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from outpace.server.body import read_json
from outpace.server.client import client_scope
from outpace.server.deadlines import deadline_of
from outpace.server.encoding import json_response
from outpace.server.model_pool import ModelPool
from outpace.server.openai.responses.create import Memory, found, start_response
from outpace.server.openai.responses.input_items import listed_items
from outpace.server.openai.responses.schema import ResponseRequest
from outpace.server.openai.responses.socket import ResponseSocket
from outpace.server.openai.responses.store import ResponseStore
from outpace.server.openapi import EVENTS, OPENAI_ERRORS, described
from outpace.server.sse import EventStream


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

    fields = ("id", "object", "created_at", "status", "model", "output")
    extra = described(*fields, body=ResponseRequest, stream=EVENTS)

    @router.post("", openapi_extra=extra, response_class=Response)
    async def create(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Answer; a stream of server-sent events with `stream`."""
        body = await read_json(request, ResponseRequest, models.settings)
        # The body's length is as good a measure of the work as its texts. Without one it came in chunks.
        num_chars = int(request.headers.get("content-length", models.settings.max_body_bytes))
        keeps = body.store is not False
        kept, deadline = memory(request, keeps=keeps), deadline_of(request, body.deadline_ms)
        async with models.lease(body.model, deadline=deadline) as (served, name):
            answer, generation = await start_response(served, name, body, kept, num_chars, deadline)
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

    @router.get("/{response_id}", openapi_extra=described(*fields))
    async def get(response_id: str, request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """A stored response."""
        return json_response(found(memory(request), response_id, "response_id").response)

    @router.delete("/{response_id}", openapi_extra=described("id", "object", "deleted"))
    async def remove(response_id: str, request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Forget a stored response."""
        found(memory(request), response_id, "response_id")
        store.remove(response_id, client_scope(request))
        return {"id": response_id, "object": "response", "deleted": True}

    return router
