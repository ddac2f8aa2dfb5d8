"""From a request's items and tools to the conversation that chat templates read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from outpace.server.conversation import (
    AnswerFormat,
    Conversation,
    ToolUse,
    call_arguments,
    check_tool_names,
)
from outpace.server.errors import APIError, unsupported
from outpace.server.openai.responses.schema import Item, Part, ResponseRequest, Tool
from outpace.text.tool_calls.grammar import TextArgument
from outpace.types import Grammar

_TEXT_PARTS = {"input_text", "output_text", "text", "reasoning_text", "summary_text"}
CUSTOM_INPUT = "input"
"""The one argument of a custom tool, as the model is shown it."""


def read_items(request: ResponseRequest, earlier: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation's messages, those of the response that this one goes on from first.

    Raises `APIError` for items that this model cannot be given.
    """
    turns = _Turns(earlier)
    if isinstance(request.input, str):
        turns.add("user", request.input)
        return turns.messages
    for index, item in enumerate(request.input):
        turns.item(item, f"input[{index}]")
    if not turns.messages:
        raise APIError(400, "'input' is empty", param="input", code="invalid_value")
    return turns.messages


def conversation_of(request: ResponseRequest, messages: list[dict[str, Any]]) -> Conversation:
    """The conversation with the request's instructions and tools. Raises `APIError`."""
    if request.instructions:
        head = {"role": "system", "content": request.instructions}
        if messages and messages[0]["role"] == "system":  # templates know one at the beginning
            text = f"{request.instructions}\n\n{messages[0]['content']}"
            messages = [{**head, "content": text}, *messages[1:]]
        else:
            messages = [head, *messages]
    return Conversation(messages, _tool_use(request), _format(request))


def custom_tools(request: ResponseRequest) -> frozenset[str]:
    """The names of the tools that take text instead of arguments."""
    return frozenset(tool.name for tool in request.tools or () if tool.type == "custom" and tool.name)


class _Turns:
    """Collects messages in chat form. An answer's items, thoughts and calls among them, are one message."""

    def __init__(self, earlier: Sequence[dict[str, Any]]) -> None:
        self.messages = list(earlier)
        self._names: dict[str, str] = {  # of what was called, by the call's id
            call["id"]: call["function"]["name"]
            for message in earlier
            for call in message.get("tool_calls", ())
        }

    def add(self, role: str, text: str) -> dict[str, Any]:
        """Add text; a turn of the same role in a row goes on."""
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != role:
            last = {"role": role, "content": text}
        else:
            last = {**self.messages.pop(), "content": "\n".join(filter(None, (last["content"], text)))}
        self.messages.append(last)
        return last

    def item(self, item: Item, where: str) -> None:
        """Add an item."""
        match item.type:
            case "message":
                # Templates of open models do not know the newer name.
                role = "system" if item.role == "developer" else item.role or ""
                if role not in {"system", "user", "assistant"}:
                    raise APIError(
                        400, f"{where} has no known 'role'", param=f"{where}.role", code="invalid_value"
                    )
                self.add(role, _text(item.content, where, "content"))
            case "function_call" | "custom_tool_call":
                self._call(item, where)
            case "function_call_output" | "custom_tool_call_output":
                call_id = _given(item.call_id, where, "call_id")
                result = {
                    "role": "tool",
                    "tool_call_id": call_id,
                    "content": _text(item.output, where, "output"),
                }
                if call_id in self._names:
                    result["name"] = self._names[call_id]
                self.messages.append(result)
            case "reasoning":
                thoughts = _text(item.content or [], where, "content")
                if thoughts:
                    self.add("assistant", "")["reasoning_content"] = thoughts
            case kind:
                raise unsupported(where, f"{where}: items of type {kind[:40]!r} are not supported")

    def _call(self, item: Item, where: str) -> None:
        call_id, name = _given(item.call_id, where, "call_id"), _given(item.name, where, "name")
        arguments: Any = {CUSTOM_INPUT: item.input or ""}
        if item.type == "function_call":
            arguments = call_arguments(item.arguments or "")
        self._names[call_id] = name
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        message = self.add("assistant", "")
        message["tool_calls"] = [*message.get("tool_calls", ()), call]


def _text(content: str | Sequence[Part] | None, where: str, field: str) -> str:
    if content is None:
        raise _missing(where, field)
    if isinstance(content, str):
        return content
    for index, part in enumerate(content):
        if part.type not in _TEXT_PARTS or part.text is None:
            param = f"{where}.{field}[{index}]"
            raise unsupported(param, f"{param} is of type {part.type[:40]!r}; this model reads text only")
    return "\n".join(part.text or "" for part in content)


def _given(value: str | None, where: str, field: str) -> str:
    if not value:
        raise _missing(where, field)
    return value


def _missing(where: str, field: str) -> APIError:
    param = f"{where}.{field}"
    return APIError(400, f"{where} has no '{field}'", param=param, code="missing_required_parameter")


def _tool_use(request: ResponseRequest) -> ToolUse | None:
    """The tools that the model may call; None where it may call none.

    Tools that the API itself would run (web search and the like) are left out: the model does not see them.
    """
    own = [tool for tool in request.tools or () if tool.type in {"function", "custom"}]
    choice = request.tool_choice or "auto"
    named = choice.name or "" if not isinstance(choice, str) else ""
    if choice == "none":
        return None
    tools = [_shown(tool, f"tools[{index}]") for index, tool in enumerate(own)]
    names = [tool["function"]["name"] for tool in tools]
    check_tool_names(names, "tools[{}].name")
    required = choice == "required" or bool(named)
    if (
        (required and not names)
        or (named and named not in names)
        or (not named and not isinstance(choice, str))
    ):
        message = "'tool_choice' asks for a tool that 'tools' does not have"
        raise APIError(400, message, param="tool_choice", code="invalid_value")
    if not tools:
        return None
    return ToolUse(
        tools,
        required=required,
        named=named,
        parallel=request.parallel_tool_calls is not False,
        strict=frozenset(tool.name for tool in own if tool.strict and tool.name),
        texts=dict(_texts(own)),
        where="tools[{}].parameters",
        where_text="tools[{}].format.definition",
    )


def _texts(tools: Sequence[Tool]) -> Iterator[tuple[str, TextArgument]]:
    """The grammars of custom tools' texts, by the tools' names. Raises `APIError`."""
    for index, tool in enumerate(tools):
        said = tool.format
        if tool.type != "custom" or said is None or said.type != "grammar":
            continue
        where = f"tools[{index}]"
        if said.syntax not in {"lark", "regex"}:
            message = f"'{where}.format.syntax' must be 'lark' or 'regex'"
            raise APIError(400, message, param=f"{where}.format.syntax", code="invalid_value")
        source = _given(said.definition, f"{where}.format", "definition")
        kind: Literal["lark", "regex"] = "lark" if said.syntax == "lark" else "regex"
        yield tool.name or "", TextArgument(CUSTOM_INPUT, Grammar(kind, source))


def _shown(tool: Tool, where: str) -> dict[str, Any]:
    """A tool as chat templates show it."""
    shown: dict[str, Any] = {"name": _given(tool.name, where, "name")}
    if tool.description is not None:
        shown["description"] = tool.description
    shown["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    if tool.type == "custom":
        definition = tool.format.definition if tool.format else None
        text = (
            {"type": "string", "description": f"Text of this grammar:\n{definition}"}
            if definition
            else {"type": "string"}
        )
        shown["parameters"] = {
            "type": "object",
            "properties": {CUSTOM_INPUT: text},
            "required": [CUSTOM_INPUT],
        }
    return {"type": "function", "function": shown}


def _format(request: ResponseRequest) -> AnswerFormat | None:
    said = request.text.format if request.text else None
    if said is None or said.type == "text":
        return None
    if said.type == "json_object":
        return AnswerFormat.of_schema({"type": "object"}, "text.format")
    if said.type != "json_schema" or said.schema_ is None:
        message = "'text.format' must be of type text, json_object, or json_schema with a 'schema'"
        raise APIError(400, message, param="text.format", code="invalid_value")
    return AnswerFormat.of_schema(said.schema_, "text.format.schema", strict=bool(said.strict))
