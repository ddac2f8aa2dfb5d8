"""The Anthropic dialect's addresses."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from outpace.server.anthropic.messages import count_tokens, create_message
from outpace.server.anthropic.schema import CountRequest, MessageRequest
from outpace.server.model_pool import ModelPool
from outpace.server.openapi import ANTHROPIC_ERRORS, EVENTS, described


def anthropic_router(models: ModelPool) -> APIRouter:
    """The Anthropic dialect's own routes over `models`."""
    router = APIRouter(prefix="/v1/messages", responses=ANTHROPIC_ERRORS)

    answer = ("id", "type", "role", "content", "model", "stop_reason", "usage")
    message = described(*answer, body=MessageRequest, stream=EVENTS)
    tokens = described("input_tokens", body=CountRequest)

    @router.post("", openapi_extra=message, response_class=Response)
    async def messages(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Answer a conversation; a stream of server-sent events with `stream`."""
        return await create_message(models, request, request.state.request_id)

    @router.post("/count_tokens", openapi_extra=tokens, response_class=Response)
    async def count(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Count the tokens of a prompt, as a request with it would."""
        return await count_tokens(models, request)

    return router
