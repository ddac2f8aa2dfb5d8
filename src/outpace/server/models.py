"""`GET /v1/models` and `/v1/models/{id}`: one address, two dialects."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from outpace.server.dialect import speaks_anthropic
from outpace.server.openapi import EITHER_ERRORS, described
from outpace.server.served import ServedModel


def models_router(served: ServedModel) -> APIRouter:
    """The routes that list what `served` answers to: the model that is loaded, then its aliases."""
    router = APIRouter(prefix="/v1", responses=EITHER_ERRORS)

    @router.get("/models", openapi_extra=described("data"))
    async def models(request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction] - a route
        """List the models, in the dialect of the request's headers."""
        names = (served.name, *served.aliases)
        if not speaks_anthropic(request.scope):
            return {"object": "list", "data": [_openai_model(served, name) for name in names]}
        data = [_anthropic_model(served, name) for name in names]
        return {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}

    @router.get("/models/{model:path}", openapi_extra=described("id"))
    async def model(model: str, request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Describe a model."""
        describe = _anthropic_model if speaks_anthropic(request.scope) else _openai_model
        return describe(served, served.resolve_name(model))

    return router


def _openai_model(served: ServedModel, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "outpace",
        "max_model_len": served.max_context,
    }


def _anthropic_model(served: ServedModel, name: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": served.name,
        "created_at": datetime.fromtimestamp(served.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": served.max_context,
        "max_tokens": served.max_context,
    }
