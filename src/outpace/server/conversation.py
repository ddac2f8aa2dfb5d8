"""What both dialects read from a request: a conversation and the use of tools, for the chat template."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from outpace.errors import InvalidParameterError
from outpace.server.answer import Progress, read_answer
from outpace.server.errors import APIError
from outpace.server.generation import Generation
from outpace.server.prefix_rules import apply_rules
from outpace.server.served import ServedModel
from outpace.server.system_turns import with_one_system
from outpace.text.tool_calls.grammar import TextArgument, json_grammar
from outpace.text.tool_calls.parser import AnswerParser
from outpace.text.tool_calls.sink import load
from outpace.text.tool_calls.thought_tokens import ThoughtTokens
from outpace.text.tool_calls.tool_prompt import told_in_text
from outpace.types import Grammar, SamplingParams

MAX_TOOL_NAME = 128
"""Characters of a tool's name."""
_TOOL_NAME = re.compile(rf"[\w.:/-]{{1,{MAX_TOOL_NAME}}}", re.ASCII)
_PART_NAMES = {
    **dict.fromkeys(("image", "image_url", "input_image"), "an image"),
    **dict.fromkeys(("file", "input_file"), "a file"),
    "document": "a document",
    "input_audio": "audio",
}
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request, and whether and how they are to be called.

    `tools` are in OpenAI's form: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    """

    tools: list[dict[str, Any]]
    required: bool = False  # at least one call
    named: str = ""  # of this tool
    allowed: frozenset[str] = frozenset()  # tools that may be called; none: all
    parallel: bool = True  # more than one call in an answer
    strict: frozenset[str] = frozenset()  # tools whose arguments must be what their schemas say
    texts: Mapping[str, TextArgument] = field(default_factory=dict[str, TextArgument])  # of what tools
    where: str = "{}"  # a schema's place in the request, {} for the tool's
    where_text: str = "{}"  # the place of a text's grammar
    places: Sequence[str] = ()  # the tools' in the request, where they are not tools[0], tools[1] and so on

    @property
    def schemas(self) -> dict[str, dict[str, Any]]:
        """The schema of each tool's arguments."""
        return {tool["function"]["name"]: tool["function"]["parameters"] for tool in self.tools}

    def may_call(self, name: str) -> bool:
        """Whether the model may call a tool; it is shown all of them."""
        return self.named in {"", name} and (not self.allowed or name in self.allowed)

    def place(self, name: str) -> str:
        """The place of a tool in the request."""
        index = list(self.schemas).index(name)
        return self.places[index] if self.places else f"tools[{index}]"


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What an answer that calls no tool must look like."""

    grammar: Grammar
    where: str  # its place in the request

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any], where: str, *, strict: bool = True) -> AnswerFormat:
        """JSON of a schema. Not `strict`: what cannot be checked of it is ignored."""
        return cls(json_grammar(schema, strict=strict), where)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request's conversation. Messages are in OpenAI's form, the arguments of calls as objects."""

    messages: list[dict[str, Any]]
    tool_use: ToolUse | None = None
    format: AnswerFormat | None = None
    prefill: str = ""  # the beginning of the answer, which the model goes on from
    template: Mapping[str, Any] = field(default_factory=dict[str, Any])  # variables for the chat template

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The tools that the template shows to the model."""
        return self.tool_use.tools if self.tool_use else None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation."""

    text: str
    token_ids: list[int]


def encode_conversation(served: ServedModel, conversation: Conversation, *, is_count: bool = False) -> Prompt:
    """Render and encode. Raises what `Tokenizer.render_chat` and `LLM.encode_text` raise.

    `is_count`: the tokens are only to be counted, however many there are.
    """
    messages, tools = apply_rules(conversation.messages, served.settings.prefix_rules), conversation.tools
    if not served.form.reads_tools and (tools or any(_is_about_tools(message) for message in messages)):
        messages, tools = told_in_text(messages, tools), None
    if served.form.family.short_ids:
        messages = [_with_short_ids(message) for message in messages]
    render = partial(served.llm.tokenizer.render_chat, tools=tools, **conversation.template)
    text = _rendered(render, messages) + conversation.prefill
    return Prompt(text, served.llm.encode_text(text, add_special=False, refuse=not is_count))


def _rendered(render: Callable[[list[dict[str, Any]]], str], messages: list[dict[str, Any]]) -> str:
    """The messages as the template shows them, its system messages moved only where it refuses them."""
    try:
        return render(messages)
    except InvalidParameterError as refusal:
        changed = with_one_system(messages)
        if changed == messages:
            raise
        try:
            return render(changed)
        except InvalidParameterError:
            raise refusal from None


def answer_params(
    served: ServedModel, conversation: Conversation, params: SamplingParams, grammar: Grammar | None
) -> SamplingParams:
    """The sampling parameters with what the conversation asks of the answer."""
    shown = served.form.shown_token_ids(calls=conversation.tool_use is not None)
    return replace(params, shown_token_ids=shown, grammar=grammar)


def holds_calls(served: ServedModel, use: ToolUse) -> bool:
    """Whether the answer's calls are held to a grammar."""
    return use.required or bool(use.strict or use.texts or use.allowed) or served.settings.constrain_tools


def answer_reader(
    served: ServedModel, conversation: Conversation, prompt: Prompt
) -> Callable[[Generation], AsyncIterator[Progress]]:
    """What reads the answer to `prompt`: see `read_answer`."""
    use, form = conversation.tool_use, served.form

    def new_parser() -> AnswerParser | None:
        own_marks = use is not None and holds_calls(served, use)
        return form.parser(use.schemas if use else None, prompt.text, own_marks=own_marks)

    def new_count() -> ThoughtTokens | None:
        return form.thought_tokens(served.llm.tokenizer, prompt.text)

    return partial(
        read_answer, new_parser=new_parser, new_count=new_count, parallel=use is None or use.parallel
    )


def call_arguments(text: str) -> Any:
    """The arguments of a call as templates take them, an object. What is none is shown as it was written."""
    try:
        arguments = load(text or "{}")
    except ValueError:
        return text
    return cast("dict[str, Any]", arguments) if isinstance(arguments, dict) else text


def check_allowed(names: Collection[str]) -> None:
    """Raise `APIError` for a choice of allowed tools that has none."""
    if not names:
        message = "'tool_choice' allows no tool of the client's; name one, or send 'none'"
        raise APIError(400, message, param="tool_choice", code="invalid_value")


def left_out(part_type: str) -> str:
    """What a tool's result has in place of a part that the model cannot read.

    A refusal would end the session: its history holds the part from then on.
    """
    name = _PART_NAMES.get(part_type, f"a part of type {part_type[:40]!r}")
    return f"[{name}, left out: this model reads text only]"


def check_tool_names(names: Iterable[str], params: Iterable[str]) -> None:
    """Raise `APIError` for names that a model cannot write, or that stand for two tools.

    `params` are the places of the names in the request.
    """
    seen: set[str] = set()
    for name, param in zip(names, params, strict=True):
        if not _TOOL_NAME.fullmatch(name):
            size = f"1 to {MAX_TOOL_NAME} letters, digits"
            message = f"'{param}' must be {size} and any of _ - . : /, not {name[:130]!r}"
            raise APIError(400, message, param=param, code="invalid_value")
        if name in seen:
            message = f"'{param}': there are two tools named {name!r}; names must be unique"
            raise APIError(400, message, param=param, code="invalid_value")
        seen.add(name)


def _is_about_tools(message: Mapping[str, Any]) -> bool:
    return message["role"] == "tool" or bool(message.get("tool_calls"))


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_call_id" in message:
        message = {**message, "tool_call_id": _short_id(message["tool_call_id"])}
    if "tool_calls" in message:
        calls = [{**call, "id": _short_id(call["id"])} for call in message["tool_calls"]]
        message = {**message, "tool_calls": calls}
    return message


def _short_id(call_id: str) -> str:
    """The id itself where it is of the form that templates ask for, else one that is as good."""
    if _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]
