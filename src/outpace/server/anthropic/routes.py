"""The Anthropic dialect's addresses."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from outpace.server.anthropic.messages import count_tokens, create_message
from outpace.server.anthropic.schema import CountRequest, MessageRequest
from outpace.server.openapi import body_of
from outpace.server.served import ServedModel


def anthropic_router(served: ServedModel) -> APIRouter:
    """The Anthropic dialect's own routes over `served`."""
    router = APIRouter(prefix="/v1/messages")

    @router.post("", openapi_extra=body_of(MessageRequest), response_class=Response)
    async def messages(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Answer a conversation; a stream of server-sent events with `stream`."""
        return await create_message(served, request, request.state.request_id)

    @router.post("/count_tokens", openapi_extra=body_of(CountRequest), response_class=Response)
    async def count(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Count the tokens of a prompt, as a request with it would."""
        return await count_tokens(served, request)

    return router
