"""Structured outputs: the `response_format` of a request, and vLLM's `structured_outputs`."""

from __future__ import annotations

from outpace.errors import InvalidParameterError
from outpace.server.conversation import AnswerFormat
from outpace.server.errors import APIError, unsupported
from outpace.server.openai.schema import SamplingFields, StructuredOutputs
from outpace.text.grammar import any_lark
from outpace.text.tool_calls.grammar import choice_grammar, json_grammar
from outpace.types import Grammar

_FORMAT = "response_format"
_OUTPUTS = "structured_outputs"


def answer_format(request: SamplingFields) -> AnswerFormat | None:
    """What the answer must look like; None where it is any text. Raises `APIError`."""
    said, outputs = request.response_format, request.structured_outputs
    if outputs is not None:
        if said is not None and said.type != "text":
            message = f"'{_OUTPUTS}' and '{_FORMAT}' both say what the answer must be; send one"
            raise APIError(400, message, param=_OUTPUTS, code="invalid_value")
        return _structured(outputs)
    if said is None or said.type == "text":
        return None
    if said.type == "json_object":
        return AnswerFormat.of_schema({"type": "object"}, _FORMAT)
    if said.type != "json_schema":
        message = f"'{_FORMAT}.type' must be 'text', 'json_object' or 'json_schema', not {said.type[:40]!r}"
        raise unsupported(f"{_FORMAT}.type", message)
    where = f"{_FORMAT}.json_schema.schema"
    if said.json_schema is None or said.json_schema.schema_ is None:
        raise APIError(400, f"'{where}' is missing", param=where, code="missing_required_parameter")
    return AnswerFormat.of_schema(said.json_schema.schema_, where, strict=bool(said.json_schema.strict))


def _structured(outputs: StructuredOutputs) -> AnswerFormat | None:
    given = [name for name, value in outputs.model_dump(by_alias=True).items() if value not in (None, False)]
    if not given:
        return None
    if len(given) > 1:
        message = f"'{_OUTPUTS}' has {', '.join(given)}; it must have one alone"
        raise APIError(400, message, param=_OUTPUTS, code="invalid_value")
    where = f"{_OUTPUTS}.{given[0]}"
    try:
        return AnswerFormat(_grammar(outputs), where)
    except InvalidParameterError as error:
        raise APIError(400, f"'{where}': {error}", param=where, code="invalid_value") from None


def _grammar(outputs: StructuredOutputs) -> Grammar:
    """The one that is given. What is no grammar is refused when it is compiled."""
    if outputs.regex is not None:
        return Grammar("regex", outputs.regex)
    if outputs.choice is not None:
        return choice_grammar(outputs.choice)
    if outputs.grammar is not None:
        return any_lark(outputs.grammar)
    if isinstance(outputs.json_, str):
        return Grammar("json_schema", outputs.json_)
    return json_grammar({"type": "object"} if outputs.json_ is None else outputs.json_, strict=True)
