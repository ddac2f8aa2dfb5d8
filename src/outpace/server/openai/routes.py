"""The OpenAI dialect's addresses."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from outpace.server.model_pool import ModelPool
from outpace.server.openai.chat import create_chat_completion
from outpace.server.openai.completions import create_completion
from outpace.server.openai.embeddings import create_embeddings
from outpace.server.openai.schema import ChatRequest, CompletionRequest, EmbeddingRequest
from outpace.server.openapi import EVENTS, OPENAI_ERRORS, described


def openai_router(models: ModelPool) -> APIRouter:
    """The OpenAI dialect's own routes over `models`."""
    router = APIRouter(prefix="/v1", responses=OPENAI_ERRORS)

    answer = ("id", "object", "created", "model", "choices", "usage")
    chat, text = (described(*answer, body=body, stream=EVENTS) for body in (ChatRequest, CompletionRequest))
    vectors = described("object", "data", "model", "usage", body=EmbeddingRequest)

    @router.post("/chat/completions", openapi_extra=chat, response_class=Response)
    async def chat_completions(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Answer a conversation; a stream of server-sent events with `stream`."""
        return await create_chat_completion(models, request)

    @router.post("/completions", openapi_extra=text, response_class=Response)
    async def completions(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Complete a text; a stream of server-sent events with `stream`."""
        return await create_completion(models, request)

    @router.post("/embeddings", openapi_extra=vectors, response_class=Response)
    async def embeddings(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Vectors of texts: the means of their tokens' final hidden states."""
        return await create_embeddings(models, request)

    return router
