"""`POST /v1/embeddings`."""

from __future__ import annotations

import base64
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from outpace.server.body import read_json
from outpace.server.deadlines import deadline_of
from outpace.server.embedding import embed
from outpace.server.encoding import json_response
from outpace.server.model_pool import ModelPool
from outpace.server.openai.prompts import checked_prompts
from outpace.server.openai.schema import EmbeddingRequest
from outpace.server.served import ServedModel
from outpace.types import Float32Array


async def create_embeddings(models: ModelPool, request: Request) -> Response:
    """The embeddings of one input or several. Raises `APIError`."""
    body = await read_json(request, EmbeddingRequest, models.settings)
    async with models.lease(body.model, deadline=deadline_of(request, None)) as (served, name):
        return await _answer(served, name, request, body)


async def _answer(served: ServedModel, name: str, request: Request, body: EmbeddingRequest) -> Response:
    inputs = checked_prompts(body.input, served, "input", served.settings.max_choices)
    embeddings = await embed(served, request, inputs, dimensions=body.dimensions)
    as_base64 = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, as_base64=as_base64)}
        for index, vector in enumerate(embeddings.vectors)
    ]
    usage = {"prompt_tokens": embeddings.num_tokens, "total_tokens": embeddings.num_tokens}
    return json_response({"object": "list", "data": data, "model": name, "usage": usage})


def _encoded(vector: Float32Array, *, as_base64: bool) -> Any:
    """Numbers, or the base64 of their bytes as little-endian float32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()
