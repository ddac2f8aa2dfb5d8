"""From the wire's messages and tools to those that chat templates read."""

from __future__ import annotations

from typing import Any, cast

from outpace.server.conversation import (
    Conversation,
    ToolUse,
    call_arguments,
    check_allowed,
    check_tool_names,
    left_out,
)
from outpace.server.errors import APIError, missing, unsupported
from outpace.server.openai.response_format import answer_format
from outpace.server.openai.schema import ChatRequest, Message, TextPart, Tool, ToolCall, ToolChoice


def read_conversation(request: ChatRequest) -> Conversation:
    """The conversation of a request. Raises `APIError` for what this model cannot be given.

    A tool's message whose id no call has is let through: the model sees texts, not ids.
    """
    names: dict[str, str] = {}  # of the functions that were called, by the call's id
    messages = [
        _message(message, f"messages[{index}]", names) for index, message in enumerate(request.messages)
    ]
    return Conversation(messages, _tool_use(request), answer_format(request))


def _message(message: Message, where: str, names: dict[str, str]) -> dict[str, Any]:
    if message.role == "function" or message.function_call:
        raise unsupported(
            where, f"{where} is in the old form of 'functions'; send 'tool_calls' and role 'tool'"
        )
    if message.role == "tool":
        call_id = message.tool_call_id
        if call_id is None:
            raise missing(where, "tool_call_id")
        result = {"role": "tool", "tool_call_id": call_id, "content": _result_of(message.content, where)}
        return result if call_id not in names else {**result, "name": names[call_id]}
    # Templates of open models do not know the newer name.
    role = "system" if message.role == "developer" else message.role
    if role != "assistant":
        return {"role": role, "content": text_of(message.content, where)}
    calls = message.tool_calls or []
    said: dict[str, Any] = {"role": role}
    said["content"] = "" if message.content is None else text_of(message.content, where)
    if message.reasoning_content:
        said["reasoning_content"] = message.reasoning_content
    if calls:
        names.update((call.id, call.function.name) for call in calls)
        said["tool_calls"] = [_call(call) for call in calls]
    return said


def _call(call: ToolCall) -> dict[str, Any]:
    """Templates take the arguments as an object. What is none is the model's own mistake, and shown to it."""
    function = {"name": call.function.name, "arguments": call_arguments(call.function.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def _tool_use(request: ChatRequest) -> ToolUse | None:
    """The tools that the model may call; None where it may call none. Raises `APIError`."""
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools or ())]
    check_tool_names(
        [tool["function"]["name"] for tool in tools],
        [f"tools[{index}].function.name" for index in range(len(tools))],
    )
    choice, named, allowed = _choice(request.tool_choice)
    names = {tool["function"]["name"] for tool in tools}
    if (choice == "required" and not names) or not allowed.union({named} if named else ()) <= names:
        message = "'tool_choice' asks for a tool that 'tools' does not have"
        raise APIError(400, message, param="tool_choice", code="invalid_value")
    if not tools or choice == "none":
        return None
    functions = [tool.function for tool in request.tools or () if tool.function is not None]
    return ToolUse(
        tools,
        required=choice == "required",
        named=named,
        allowed=allowed,
        parallel=request.parallel_tool_calls is not False,
        strict=frozenset(function.name for function in functions if function.strict),
        where="{}.function.parameters",
    )


def _choice(choice: str | ToolChoice | None) -> tuple[str, str, frozenset[str]]:
    """What a choice says: auto, none or required, the function that it names, and those that it allows.

    "" where it names none; it allows all where it says nothing of that. Raises `APIError`.
    """
    if choice is None or isinstance(choice, str):
        return choice or "auto", "", frozenset()
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        tools = choice.allowed_tools.tools
        names = frozenset(tool.function.name if tool.function else "" for tool in tools)
        check_allowed(names)
        return choice.allowed_tools.mode, "", names
    if choice.type != "function" or choice.function is None or not choice.function.name:
        message = "'tool_choice' must be 'auto', 'none', 'required', a function or 'allowed_tools'"
        raise unsupported("tool_choice", message)
    return "required", choice.function.name, frozenset()


def _tool(tool: Tool, where: str) -> dict[str, Any]:
    if tool.type != "function":
        raise unsupported(where, f"{where} is of type {tool.type[:40]!r}; only functions are supported")
    function = tool.function
    if function is None:
        raise missing(where, "function")
    shown: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        shown["description"] = function.description
    shown["parameters"] = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": shown}


def _result_of(content: Any, where: str) -> str:
    """The text of a tool's result, in which parts that are no text are left out."""
    if isinstance(content, list):
        parts = cast("list[TextPart]", content)
        content = [
            part if part.type == "text" else TextPart(type="text", text=left_out(part.type)) for part in parts
        ]
    return text_of(content, where)


def text_of(content: Any, where: str) -> str:
    """The text of a `content`, given as such or in parts; `where` is its owner's place in the request."""
    if isinstance(content, str):
        return content
    if content is None:
        raise missing(where, "content")
    texts: list[str] = []
    for index, part in enumerate(content):
        param = f"{where}.content[{index}]"
        if part.type != "text":
            raise unsupported(param, f"{param} is of type {part.type[:40]!r}; this model reads text only")
        if part.text is None:
            raise missing(param, "text")
        texts.append(part.text)
    return "\n".join(texts)
