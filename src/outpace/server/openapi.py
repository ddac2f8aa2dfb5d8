"""The OpenAPI page: what it says of bodies and answers that the endpoints read and write themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel

EVENTS = "text/event-stream"

Responses = dict[int | str, dict[str, Any]]


def described(*answer: str, body: type[BaseModel] | None = None, stream: str | None = None) -> dict[str, Any]:
    """A route's `openapi_extra`: its body's schema, and that its answer is an object with these fields.

    `stream` is the media type of an answer that is asked for as a stream.
    """
    content: dict[str, Any] = {"application/json": {"schema": _object(answer)}}
    if stream is not None:
        content[stream] = {"schema": _EVENT if stream == EVENTS else {"type": "string"}}
    extra: dict[str, Any] = {"responses": {"200": {"description": "The answer", "content": content}}}
    if body is not None:
        whole = body.model_json_schema()
        schema = _inlined(whole, whole.pop("$defs", {}))
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return extra


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


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


def _errors(*schemas: dict[str, Any]) -> Responses:
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
    return {"default": {"description": "An error", "content": {"application/json": {"schema": schema}}}}


_STRING = {"type": "string"}
_EVENT = _object(("data",), data=_STRING, event=_STRING)
"""Each event of a stream."""
_STRING_OR_NULL = {"type": ["string", "null"]}
_OPENAI_ERROR = _object(
    ("error",),
    error=_object(
        ("message", "type", "param", "code"),
        message=_STRING,
        type=_STRING,
        param=_STRING_OR_NULL,
        code=_STRING_OR_NULL,
    ),
)
_ANTHROPIC_ERROR = _object(
    ("type", "error", "request_id"),
    type={"const": "error"},
    error=_object(("type", "message"), type=_STRING, message=_STRING),
    request_id=_STRING,
)

OPENAI_ERRORS = _errors(_OPENAI_ERROR)
"""A router's `responses`: whatever goes wrong, the answer is one object in the dialect's form."""
ANTHROPIC_ERRORS = _errors(_ANTHROPIC_ERROR)
EITHER_ERRORS = _errors(_OPENAI_ERROR, _ANTHROPIC_ERROR)
OLLAMA_ERRORS = _errors(_object(("error",), error=_STRING))
