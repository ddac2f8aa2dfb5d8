"""What a request asks an answer to look like, as a grammar: calls that must come, and JSON of a schema."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from outpace.errors import InvalidParameterError
from outpace.server.conversation import AnswerSchema, Conversation, Prompt, ToolUse, holds_calls
from outpace.server.errors import APIError
from outpace.server.served import ServedModel
from outpace.text.tool_calls.families import opens_thoughts
from outpace.text.tool_calls.grammar import CallSpec, answer_grammar, json_grammar
from outpace.types import Grammar


async def compiled_grammar(served: ServedModel, conversation: Conversation, prompt: Prompt) -> Grammar | None:
    """The grammar of the answer, which the engine has then compiled; None where it may be anything.

    Raises `APIError` that names the schema which cannot be used.
    """
    use = conversation.tool_use
    if conversation.schema is None and (use is None or not holds_calls(served, use)):
        return None
    grammar = _grammar(served, conversation, prompt)
    return await _compiled(served, grammar, conversation)


async def compiled_schema(served: ServedModel, schema: AnswerSchema | None) -> Grammar | None:
    """As `compiled_grammar`, for a text that is JSON and nothing else."""
    if schema is None:
        return None
    grammar = json_grammar(schema.schema, strict=schema.strict)
    return await _compiled(served, grammar, Conversation([], schema=schema))


async def _compiled(served: ServedModel, grammar: Grammar, conversation: Conversation) -> Grammar:
    def compile_it() -> None:
        try:
            served.grammars.start(grammar)
        except InvalidParameterError as error:
            raise _explain(served, conversation, error) from error

    # It takes up to a second, for many tools and for the first grammar of all.
    await asyncio.to_thread(compile_it)
    return grammar


def _grammar(served: ServedModel, conversation: Conversation, prompt: Prompt) -> Grammar:
    use, schema, form = conversation.tool_use, conversation.schema, served.form
    if use is None and form.thoughts is None and schema is not None:
        return json_grammar(schema.schema, strict=schema.strict)
    required = use is not None and use.required
    return answer_grammar(
        form,
        _calls(use),
        required=required,
        parallel=use is not None and use.parallel and not use.named,
        opened=opens_thoughts(prompt.text, form.thoughts),
        answer=None if schema is None or required else schema.schema,
        strict_answer=schema is not None and schema.strict,
    )


def _calls(use: ToolUse | None) -> list[CallSpec]:
    schemas: Mapping[str, Mapping[str, Any]] = use.schemas if use else {}
    return [
        CallSpec(name, schema, strict=use is not None and name in use.strict)
        for name, schema in schemas.items()
        if use is None or use.named in {"", name}
    ]


def _explain(served: ServedModel, conversation: Conversation, error: InvalidParameterError) -> APIError:
    """The same with the field at fault: the first schema that cannot be used by itself."""
    use, schema = conversation.tool_use, conversation.schema
    if schema is not None and (said := _problem(served, json_grammar(schema.schema, strict=schema.strict))):
        return _refusal(schema.where, said)
    for index, call in enumerate(_calls(use)):
        said = _problem(served, json_grammar(call.schema, strict=call.strict))
        if said and use is not None:
            place = index if not use.named else list(use.schemas).index(use.named)
            return _refusal(use.where.format(place), said)
    return _refusal(schema.where if schema is not None else "tools", str(error))


def _problem(served: ServedModel, grammar: Grammar) -> str:
    try:
        served.grammars.start(grammar)
    except InvalidParameterError as error:
        return str(error)
    return ""


def _refusal(where: str, said: str) -> APIError:
    return APIError(400, f"'{where}': {said}", param=where, code="invalid_value")
