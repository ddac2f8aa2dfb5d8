"""From the wire's messages and tools to those that chat templates read."""

from __future__ import annotations

from typing import Any

from outpace.server.conversation import AnswerFormat, Conversation, ToolUse, check_tool_names
from outpace.server.errors import APIError, unsupported
from outpace.server.ollama.schema import ChatRequest, Common, GenerateRequest, Message, Tool, ToolCall


def read_chat(request: ChatRequest) -> Conversation:
    """The conversation of a chat. Raises `APIError` for what this model cannot be given."""
    turns = _Turns()
    for index, message in enumerate(request.messages or ()):
        if message.images:
            raise unsupported(f"messages[{index}].images", "this model reads text only")
        turns.add(message)
    return Conversation(
        turns.messages, _tool_use(request.tools), answer_format(request), template=_template(request)
    )


def read_prompt(request: GenerateRequest) -> Conversation:
    """A prompt as the conversation that the template makes of it. Raises `APIError`."""
    if request.images:
        raise unsupported("images", "this model reads text only")
    system = [{"role": "system", "content": request.system}] if request.system else []
    messages = [*system, {"role": "user", "content": request.prompt or ""}]
    return Conversation(messages, format=answer_format(request), template=_template(request))


def answer_format(request: Common) -> AnswerFormat | None:
    """The schema of the answer; None where it is text. Raises `APIError` for a format that is none."""
    wanted = request.format
    if wanted is None or wanted == "":
        return None
    if wanted == "json":
        return AnswerFormat.of_schema({"type": "object"}, "format")
    if isinstance(wanted, dict):
        return AnswerFormat.of_schema(wanted, "format", strict=False)  # Ollama passes over what it knows not
    raise APIError(400, "'format' must be \"json\" or a JSON schema", param="format", code="invalid_value")


def _template(request: Common) -> dict[str, Any]:
    """Levels of thinking mean that there is some; where nothing is said the template decides."""
    return {} if request.think is None else {"enable_thinking": bool(request.think)}


class _Turns:
    """Collects messages. Calls have no ids on the wire, but templates join results to them by such."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._num_calls = 0
        self._open: dict[str, str] = {}  # the tools' names of calls without a result yet, by id

    def add(self, message: Message) -> None:
        text = message.content or ""
        if message.role == "tool":
            self.messages.append({"role": "tool", **self._answered(message), "content": text})
            return
        said: dict[str, Any] = {"role": message.role, "content": text}
        if message.role == "assistant":
            if message.thinking:
                said["reasoning_content"] = message.thinking
            if message.tool_calls:
                self._open = {}
                said["tool_calls"] = [self._call(call) for call in message.tool_calls]
        self.messages.append(said)

    def _call(self, call: ToolCall) -> dict[str, Any]:
        self._num_calls += 1
        call_id = call.id or f"call_{self._num_calls}"
        self._open[call_id] = call.function.name
        function = {"name": call.function.name, "arguments": call.function.arguments or {}}
        return {"id": call_id, "type": "function", "function": function}

    def _answered(self, message: Message) -> dict[str, str]:
        """The call of a result: the one it names, or the first open one, of its tool if it names that."""
        call_id, name = message.tool_call_id, message.tool_name or ""
        if call_id not in self._open:
            same = (known for known, tool in self._open.items() if tool == name or not name)
            call_id = next(same, None)
        if call_id is None:
            self._num_calls += 1
            call_id = f"call_{self._num_calls}"
        name = self._open.pop(call_id, name)
        return {"tool_call_id": call_id, **({"name": name} if name else {})}


def _tool_use(tools: list[Tool] | None) -> ToolUse | None:
    """The tools that the model may call; None where it may call none. Raises `APIError`."""
    if not tools:
        return None
    check_tool_names(
        [tool.function.name for tool in tools], [f"tools[{i}].function.name" for i in range(len(tools))]
    )
    shown = [
        {
            "type": "function",
            "function": {
                "name": tool.function.name,
                "description": tool.function.description or "",
                "parameters": tool.function.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
    ]
    return ToolUse(shown, where="{}.function.parameters")
