"""`GET /v1/models` and `/v1/models/{id}`: one address, two dialects."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from outpace.server.dialect import speaks_anthropic
from outpace.server.model_entry import Entry
from outpace.server.model_pool import ModelPool
from outpace.server.openapi import EITHER_ERRORS, described


def models_router(models: ModelPool) -> APIRouter:
    """The routes that list what requests may name: the models, in memory or not, then their aliases."""
    router = APIRouter(prefix="/v1", responses=EITHER_ERRORS)

    @router.get("/models", openapi_extra=described("data"))
    async def all_models(request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction] - a route
        """List the models, in the dialect of the request's headers."""
        if not speaks_anthropic(request.scope):
            data = [_openai_model(models, name, entry) for name, entry in models.named]
            return {"object": "list", "data": data}
        data = [_anthropic_model(models, name, entry) for name, entry in models.named]
        return {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}

    @router.get("/models/{model:path}", openapi_extra=described("id"))
    async def model(model: str, request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Describe a model."""
        describe = _anthropic_model if speaks_anthropic(request.scope) else _openai_model
        entry, name = models.find(model)
        return describe(models, name, entry)

    return router


def _openai_model(models: ModelPool, name: str, entry: Entry) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": models.created,
        "owned_by": "outpace",
        "max_model_len": entry.max_context,
    }


def _anthropic_model(models: ModelPool, name: str, entry: Entry) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": entry.name,
        "created_at": datetime.fromtimestamp(models.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": entry.max_context,
        "max_tokens": entry.max_context,
    }
