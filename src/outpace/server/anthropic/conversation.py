"""From the wire's messages to those that chat templates read, in OpenAI's form, tools included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from outpace.server.anthropic.schema import Block, CountRequest, Message, ResultPart, Tool
from outpace.server.conversation import AnswerFormat, Conversation, ToolUse, check_tool_names, left_out
from outpace.server.errors import APIError, unsupported
from outpace.server.system_turns import system_reminder

_SERVICE_ONLY = ("server_tool_use", "mcp_tool_use", "container_upload")
"""Parts of an earlier turn of the model's that tools of the API's own service left, beside their results."""


def read_conversation(request: CountRequest) -> Conversation:
    """The conversation of a request. Raises `APIError` for what this model cannot be given."""
    turns = _Turns()
    system = _text(_as_parts(request.system), "system")
    if system:
        turns.add("system", system)
    *earlier, last = request.messages
    prefill = _prefill(last) if earlier else None
    for index, message in enumerate(earlier if prefill is not None else request.messages):
        where = f"messages[{index}]"
        if message.role == "assistant":
            turns.assistant(_blocks(message), where)
        elif message.role == "user":
            turns.user(_blocks(message), where)
        else:  # in mid-conversation, where templates know no system message: the form that agents use
            text = _text(_blocks(message), where)
            turns.add("user", system_reminder(text))
    return Conversation(
        turns.messages,
        _tool_use(request),
        _answer_format(request),
        prefill or "",
        {"enable_thinking": shows_thinking(request)},
    )


def shows_thinking(request: CountRequest) -> bool:
    """Whether the client asked for the model's thoughts."""
    thinking = request.thinking
    return thinking is not None and thinking.type != "disabled" and thinking.display != "omitted"


def wants_cache(request: CountRequest) -> bool:
    """Whether the request marks any part of the prompt for the cache."""
    return cache_seconds(request) > 0


def cache_seconds(request: CountRequest) -> float:
    """For how long the request wants its prompt to be cached: 5 minutes, an hour, or 0 where it does not ask.

    The whole prompt counts where any part of it is marked, as long as the longest mark says.
    """
    parts: list[Any] = [request, *(request.tools or ())]
    if not isinstance(request.system, str):
        parts += request.system or ()
    for message in request.messages:
        parts += _blocks(message)
    marks = [part.cache_control for part in parts if part.cache_control is not None]
    hour = any(isinstance(mark, dict) and cast(dict[str, Any], mark).get("ttl") == "1h" for mark in marks)
    return 3600.0 if hour else 300.0 if marks else 0.0


class _Turns:
    """Collects messages. Turns of one role in a row become one, as templates often ask for."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._tool_names: dict[str, str] = {}  # by the call's id

    def add(self, role: str, text: str) -> dict[str, Any]:
        """Add text to the conversation; returns the message that holds it."""
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != role:
            last = {"role": role, "content": text}
            self.messages.append(last)
        else:
            last["content"] = "\n".join(filter(None, (last["content"], text)))
        return last

    def user(self, blocks: Sequence[Block], where: str) -> None:
        """A user's turn: the results of tools, each a message of its own, and text."""
        texts: list[Block] = []
        for block in blocks:
            if block.type != "tool_result":
                texts.append(block)
                continue
            if texts:
                self.add("user", _text(texts, where))
                texts = []
            self._tool_result(block, where)
        if texts or not blocks:
            self.add("user", _text(texts, where))

    def _tool_result(self, block: Block, where: str) -> None:
        if block.tool_use_id is None:
            raise _missing(f"{where}: a tool_result", "tool_use_id")
        text = "\n".join(_result_text(part, where) for part in _as_parts(block.content))
        result = {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
        if block.is_error:
            result["content"] = f"Error: {text}"
        if block.tool_use_id in self._tool_names:
            result["name"] = self._tool_names[block.tool_use_id]
        self.messages.append(result)

    def assistant(self, blocks: Sequence[Block], where: str) -> None:
        """The model's own turn: thoughts, text, calls of tools."""
        texts = [block for block in blocks if not _is_no_text(block.type)]
        message = self.add("assistant", _text(texts, where))
        thoughts = [block.thinking or "" for block in blocks if block.type == "thinking"]
        if any(thoughts):
            message["reasoning_content"] = "\n".join(filter(None, thoughts))
        for block in blocks:
            if block.type == "tool_use":
                message.setdefault("tool_calls", []).append(self._tool_call(block, where))

    def _tool_call(self, block: Block, where: str) -> dict[str, Any]:
        if block.id is None or block.name is None:
            raise _missing(f"{where}: a tool_use", "id" if block.id is None else "name")
        self._tool_names[block.id] = block.name
        function = {"name": block.name, "arguments": block.input or {}}
        return {"id": block.id, "type": "function", "function": function}


def _blocks(message: Message) -> list[Block]:
    content = message.content
    return [Block(type="text", text=content)] if isinstance(content, str) else content


def _as_parts(content: str | Sequence[ResultPart] | None) -> Sequence[ResultPart]:
    if isinstance(content, str):
        return [ResultPart(type="text", text=content)]
    return content or ()


def _prefill(last: Message) -> str | None:
    """The text of a last message that begins the answer, or None where it is no such message."""
    blocks = _blocks(last)
    if last.role != "assistant" or any(block.type != "text" for block in blocks):
        return None
    return "".join(block.text or "" for block in blocks)


def _text(parts: Iterable[Block | ResultPart], where: str) -> str:
    return "\n".join(_part_text(part, where) for part in parts)


def _part_text(part: Block | ResultPart, where: str) -> str:
    """The text of a block. Raises `APIError` for one that has none."""
    text = _text_in(part, where)
    if text is None:
        message = f"{where}: a block of type {part.type[:40]!r} cannot be read; this model reads text only"
        raise unsupported(where, message)
    return text


def _result_text(part: ResultPart, where: str) -> str:
    """A part of a tool's result. What is no text is named: a refusal would come again with every turn."""
    text = _text_in(part, where)
    return left_out(part.type) if text is None else text


def _text_in(part: Block | ResultPart, where: str) -> str | None:
    """The text that a block is or stands for; None where it is no text."""
    match part.type:
        case "text":
            if part.text is None:
                raise _missing(f"{where}: a text block", "text")
            return part.text
        case "document":
            return _document_text(part)
        case "search_result":
            contents = [part.content] if isinstance(part.content, str) else part.content or ()
            texts = [each if isinstance(each, str) else each.text for each in contents]
            source = part.source if isinstance(part.source, str) else None
            return "\n".join(text for text in (part.title, source, *texts) if text)
        case "tool_reference":
            return f"tool: {part.tool_name}"
        case _:
            return None


def _is_no_text(kind: str) -> bool:
    """Whether a block of the model's own turn is a call, a thought, or of a tool of the service's own."""
    calls = kind in {"tool_use", "thinking", "redacted_thinking", *_SERVICE_ONLY}
    return calls or kind.endswith("_tool_result")


def _document_text(part: Block | ResultPart) -> str | None:
    """The text of a document that is given as text, or in blocks; None for files."""
    source = part.source
    if source is None or isinstance(source, str):
        return None
    text = source.data if source.type == "text" else None
    if source.type == "content" and source.content is not None:
        parts = [source.content] if isinstance(source.content, str) else source.content
        texts = (part if isinstance(part, str) else part.text or left_out(part.type) for part in parts)
        text = "\n".join(texts)
    return f"{part.title}\n{text}" if part.title and text is not None else text


def _tool_use(request: CountRequest) -> ToolUse | None:
    """The tools that the model may call; None where it may call none. Raises `APIError`."""
    choice = request.tool_choice
    tools = request.tools or ()
    check_tool_names([tool.name for tool in tools], [f"tools[{i}].name" for i in range(len(tools))])
    shown = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    if choice is not None and choice.type in {"any", "tool"}:
        names = {tool.name for tool in tools}
        if not names or (choice.type == "tool" and choice.name not in names):
            message = "'tool_choice' asks for a tool that 'tools' does not have"
            raise APIError(400, message, param="tool_choice", code="invalid_value")
    if not shown or (choice is not None and choice.type == "none"):
        return None
    return ToolUse(
        shown,
        required=choice is not None and choice.type in {"any", "tool"},
        named=(choice.name or "") if choice is not None and choice.type == "tool" else "",
        parallel=choice is None or not choice.disable_parallel_tool_use,
        strict=frozenset(tool.name for tool in tools if tool.strict),
        where="{}.input_schema",
    )


def _tool(tool: Tool, where: str) -> dict[str, Any]:
    if tool.type is not None and tool.type != "custom":
        message = (
            f"{where}: only Anthropic's own models know the tool {tool.type[:40]!r}; "
            "give one of your own with an 'input_schema'"
        )
        raise unsupported(where, message)
    if tool.input_schema is None:
        raise _missing(where, "input_schema")
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _answer_format(request: CountRequest) -> AnswerFormat | None:
    said, where = request.output_config.format if request.output_config else None, "output_config.format"
    if said is None:
        said, where = request.output_format, "output_format"
    if said is None:
        return None
    if said.type != "json_schema":
        raise unsupported(where, f"'{where}' is of type {said.type[:40]!r}; only 'json_schema' is supported")
    if said.schema_ is None:
        raise _missing(where, "schema")
    return AnswerFormat.of_schema(said.schema_, f"{where}.schema")


def _missing(where: str, field: str) -> APIError:
    return APIError(400, f"{where} has no '{field}'", param=where, code="missing_required_parameter")
