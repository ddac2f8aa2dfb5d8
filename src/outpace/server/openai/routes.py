"""The OpenAI dialect's addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from outpace.server.openai.chat import create_chat_completion
from outpace.server.openai.completions import create_completion
from outpace.server.openai.schema import ChatRequest, CompletionRequest
from outpace.server.served import ServedModel


def openai_router(served: ServedModel) -> APIRouter:
    """The routes of `/v1` over `served`."""
    router = APIRouter(prefix="/v1")

    @router.post("/chat/completions", openapi_extra=_body(ChatRequest), response_class=Response)
    async def chat_completions(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Answer a conversation; a stream of server-sent events with `stream`."""
        return await create_chat_completion(served, request)

    @router.post("/completions", openapi_extra=_body(CompletionRequest), response_class=Response)
    async def completions(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Complete a text; a stream of server-sent events with `stream`."""
        return await create_completion(served, request)

    @router.get("/models")
    async def models() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction] - a route
        """List the models: the one that is loaded."""
        return {"object": "list", "data": [_describe(served)]}

    @router.get("/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction] - a route
        """Describe a model."""
        served.check_name(model)
        return _describe(served)

    return router


def _describe(served: ServedModel) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "outpace",
        "max_model_len": served.llm.config.max_context or served.llm.spec.max_context,
    }


def _body(schema: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI page's description of a body that the endpoint reads itself."""
    whole = schema.model_json_schema()
    content = {"application/json": {"schema": _inlined(whole, whole.pop("$defs", {}))}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A JSON schema with its definitions put where they are referred to; none of ours is recursive."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    fields = cast("dict[str, Any]", schema)
    if "$ref" in fields:
        return _inlined(definitions[fields["$ref"].removeprefix("#/$defs/")], definitions)
    return {name: _inlined(value, definitions) for name, value in fields.items()}
