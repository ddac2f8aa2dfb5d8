"""Structured outputs: the `response_format` of a request."""

from __future__ import annotations

from outpace.server.conversation import AnswerSchema
from outpace.server.errors import APIError, unsupported
from outpace.server.openai.schema import SamplingFields

_WHERE = "response_format"


def answer_schema(request: SamplingFields) -> AnswerSchema | None:
    """The schema of the answer; None where it is text. Raises `APIError`."""
    said = request.response_format
    if said is None or said.type == "text":
        return None
    if said.type == "json_object":
        return AnswerSchema({"type": "object"}, _WHERE)
    if said.type != "json_schema":
        message = f"'{_WHERE}.type' must be 'text', 'json_object' or 'json_schema', not {said.type[:40]!r}"
        raise unsupported(f"{_WHERE}.type", message)
    where = f"{_WHERE}.json_schema.schema"
    if said.json_schema is None or said.json_schema.schema_ is None:
        raise APIError(400, f"'{where}' is missing", param=where, code="missing_required_parameter")
    return AnswerSchema(said.json_schema.schema_, where, strict=bool(said.json_schema.strict))
