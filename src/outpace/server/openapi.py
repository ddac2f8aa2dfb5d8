"""The OpenAPI page's descriptions of bodies that the endpoints read themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel


def body_of(schema: type[BaseModel]) -> dict[str, Any]:
    """A route's `openapi_extra` for a body of `schema`."""
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
