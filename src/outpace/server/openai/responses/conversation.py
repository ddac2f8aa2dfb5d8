"""From a request's items and tools to the conversation that chat templates read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outpace.server.conversation import AnswerFormat, Conversation, call_arguments, left_out
from outpace.server.errors import APIError, given, missing, unsupported
from outpace.server.openai.responses.reasoning import unwrapped
from outpace.server.openai.responses.schema import Item, Part, ResponseRequest
from outpace.server.openai.responses.tools import CUSTOM_INPUT, ShownTools, tool_use

_TEXT_PARTS = {"input_text", "output_text", "text", "reasoning_text", "summary_text"}


def read_items(
    request: ResponseRequest, earlier: Sequence[dict[str, Any]], tools: ShownTools
) -> list[dict[str, Any]]:
    """The conversation's messages, those of the response that this one goes on from first.

    Raises `APIError` for items that this model cannot be given.
    """
    turns = _Turns(earlier, tools)
    if isinstance(request.input, str):
        turns.add("user", request.input)
        return turns.messages
    for index, item in enumerate(request.input):
        turns.item(item, f"input[{index}]")
    if not turns.messages and request.wants_answer:
        raise APIError(400, "'input' is empty", param="input", code="invalid_value")
    return turns.messages


def conversation_of(
    request: ResponseRequest, messages: list[dict[str, Any]], tools: ShownTools
) -> Conversation:
    """The conversation with the request's instructions and tools. Raises `APIError`."""
    if request.instructions:
        head = {"role": "system", "content": request.instructions}
        if messages and messages[0]["role"] == "system":  # templates know one at the beginning
            text = f"{request.instructions}\n\n{messages[0]['content']}"
            messages = [{**head, "content": text}, *messages[1:]]
        else:
            messages = [head, *messages]
    return Conversation(messages, tool_use(request, tools), _format(request))


class _Turns:
    """Collects messages in chat form. An answer's items, thoughts and calls among them, are one message."""

    def __init__(self, earlier: Sequence[dict[str, Any]], tools: ShownTools) -> None:
        self.messages = list(earlier)
        self._tools = tools
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
        match item.kind:
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
                call_id = given(item.call_id, where, "call_id")
                result = {
                    "role": "tool",
                    "tool_call_id": call_id,
                    "content": _text(item.output, where, "output", of_tool=True),
                }
                if call_id in self._names:
                    result["name"] = self._names[call_id]
                self.messages.append(result)
            case "reasoning":
                thoughts = _thoughts(item, where)
                if thoughts:
                    self.add("assistant", "")["reasoning_content"] = thoughts
            case kind:
                raise unsupported(where, f"{where}: items of type {kind[:40]!r} are not supported")

    def _call(self, item: Item, where: str) -> None:
        call_id = given(item.call_id, where, "call_id")
        name = self._tools.shown_name(item.namespace, given(item.name, where, "name"))
        arguments: Any = {CUSTOM_INPUT: item.input or ""}
        if item.type == "function_call":
            arguments = call_arguments(item.arguments or "")
        self._names[call_id] = name
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        message = self.add("assistant", "")
        message["tool_calls"] = [*message.get("tool_calls", ()), call]


def _thoughts(item: Item, where: str) -> str:
    """The thoughts of a reasoning item, from the first field that has any."""
    return (
        _text(item.content or [], where, "content")
        or unwrapped(item.encrypted_content)
        or _text(item.summary or [], where, "summary")
    )


def _text(content: str | Sequence[Part] | None, where: str, field: str, *, of_tool: bool = False) -> str:
    """The text of a content; of a tool's, parts that are no text are left out."""
    if content is None:
        raise missing(where, field)
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        if part.type in _TEXT_PARTS and part.text is not None:
            texts.append(part.text)
        elif of_tool and part.type not in _TEXT_PARTS:
            texts.append(left_out(part.type))
        else:
            param = f"{where}.{field}[{index}]"
            raise unsupported(param, f"{param} is of type {part.type[:40]!r}; this model reads text only")
    return "\n".join(texts)


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
