"""`POST /api/embed`, and the older `/api/embeddings`."""

from __future__ import annotations

from time import perf_counter_ns

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from outpace.server.body import read_json
from outpace.server.deadlines import deadline_of
from outpace.server.embedding import Embeddings, embed
from outpace.server.encoding import json_response
from outpace.server.model_pool import ModelPool
from outpace.server.ollama.params import plain_name
from outpace.server.ollama.schema import EmbeddingsRequest, EmbedRequest
from outpace.server.openapi import OLLAMA_ERRORS, described


def embed_router(models: ModelPool) -> APIRouter:
    """The routes over `models`."""
    router = APIRouter(prefix="/api", responses=OLLAMA_ERRORS)

    @router.post(
        "/embed", openapi_extra=described("model", "embeddings", body=EmbedRequest), response_class=Response
    )
    async def many(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Vectors of texts, each of length 1."""
        start = perf_counter_ns()
        body = await read_json(request, EmbedRequest, models.settings)
        deadline = deadline_of(request, None)
        inputs = list(filter(None, [body.input])) if isinstance(body.input, str) else body.input
        async with models.lease(plain_name(body.model), body.keep_alive, deadline=deadline) as (served, name):
            # One token is left for the answer that nobody reads.
            most = served.llm.loop.engine.max_context - 1 if body.truncate is not False else None
            found = Embeddings([], 0)
            if inputs:
                found = await embed(served, request, inputs, dimensions=body.dimensions, most_tokens=most)
        answer = {
            "model": name,
            "embeddings": [vector.tolist() for vector in found.vectors],
            "total_duration": perf_counter_ns() - start,
            "load_duration": 0,
            "prompt_eval_count": found.num_tokens,
        }
        return json_response(answer)

    @router.post(
        "/embeddings", openapi_extra=described("embedding", body=EmbeddingsRequest), response_class=Response
    )
    async def one(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """The vector of one text."""
        body = await read_json(request, EmbeddingsRequest, models.settings)
        deadline = deadline_of(request, None)
        async with models.lease(plain_name(body.model), body.keep_alive, deadline=deadline) as (served, _):
            found = await embed(served, request, [body.prompt], dimensions=None)
        return json_response({"embedding": found.vectors[0].tolist()})

    return router
