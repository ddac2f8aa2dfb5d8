"""What a request asks an answer to look like, as a grammar: calls that must come, and texts of a format."""

from __future__ import annotations

import asyncio

from outpace.errors import InvalidParameterError
from outpace.server.conversation import AnswerFormat, Conversation, Prompt, ToolUse, holds_calls
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
    if conversation.format is None and (use is None or not holds_calls(served, use)):
        return None
    grammar = _grammar(served, conversation, prompt)
    return await _compiled(served, grammar, conversation)


async def compiled_format(served: ServedModel, said: AnswerFormat | None) -> Grammar | None:
    """As `compiled_grammar`, for a text that is of a format and nothing else."""
    if said is None:
        return None
    return await _compiled(served, said.grammar, Conversation([], format=said))


async def _compiled(served: ServedModel, grammar: Grammar, conversation: Conversation) -> Grammar:
    def compile_it() -> None:
        try:
            served.grammars.start(grammar)
        except InvalidParameterError as error:
            raise _explain(served, conversation, error) from error

    # Many tools take their time.
    await asyncio.to_thread(compile_it)
    return grammar


def _grammar(served: ServedModel, conversation: Conversation, prompt: Prompt) -> Grammar:
    use, said, form = conversation.tool_use, conversation.format, served.form
    if use is None and form.thoughts is None and said is not None:
        return said.grammar
    required = use is not None and use.required
    return answer_grammar(
        form,
        _calls(use),
        required=required,
        parallel=use is not None and use.parallel and not use.named,
        opened=opens_thoughts(prompt.text, form.thoughts),
        answer=None if said is None or required else said.grammar,
    )


def _calls(use: ToolUse | None) -> list[CallSpec]:
    if use is None:
        return []
    return [
        CallSpec(name, schema, strict=name in use.strict, text=use.texts.get(name))
        for name, schema in use.schemas.items()
        if use.may_call(name)
    ]


def _explain(served: ServedModel, conversation: Conversation, error: InvalidParameterError) -> APIError:
    """The same with the field at fault: the first schema or grammar that cannot be used by itself."""
    use, wanted = conversation.tool_use, conversation.format
    if wanted is not None and (said := _problem(served, wanted.grammar)):
        return _refusal(wanted.where, said)
    for call in _calls(use):
        text = call.text
        said = _problem(served, text.grammar if text else json_grammar(call.schema, strict=call.strict))
        if said and use is not None:
            return _refusal((use.where_text if text else use.where).format(use.place(call.name)), said)
    return _refusal(wanted.where if wanted is not None else "tools", str(error))


def _problem(served: ServedModel, grammar: Grammar) -> str:
    try:
        served.grammars.start(grammar)
    except InvalidParameterError as error:
        return str(error)
    return ""


def _refusal(where: str, said: str) -> APIError:
    return APIError(400, f"'{where}': {said}", param=where, code="invalid_value")
