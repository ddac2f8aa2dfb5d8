"""Asks a server, as clients do, for everything that they need, and says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from outpace.clients.http import Server, ServerError
from outpace.errors import OutpaceError

__all__ = ["CHECKS", "Finding", "examine"]

_HELLO = [{"role": "user", "content": "Say hello."}]
_FEW = 8  # tokens: the form is what counts
_NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_TOOL: dict[str, Any] = {"name": "get_time", "description": "Tells the time.", "parameters": _NOTHING}
_ANTHROPIC = {"anthropic-version": "2023-06-01"}
_ENDS = {"response.completed", "response.incomplete"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what it is for, and what is wrong ("" where nothing is)."""

    name: str
    needed_by: str
    problem: str


class _WrongError(OutpaceError):
    """An answer is not what clients expect."""


def examine(server: Server, model: str) -> Iterator[Finding]:
    """Run all checks; each yields as it is done."""
    for name, needed_by, check in CHECKS:
        problem = ""
        try:
            check(server, model)
        except (ServerError, _WrongError) as error:
            problem = str(error)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            problem = f"the answer is not of the form that it should be: {type(error).__name__}: {error}"
        yield Finding(name, needed_by, problem)


def _demand(fine: bool, problem: str) -> None:
    if not fine:
        raise _WrongError(problem)


def _root(server: Server, _model: str) -> None:
    server.head("/")


def _models(server: Server, model: str) -> None:
    names = [each["id"] for each in server.get("/v1/models")["data"]]
    _demand(model in names, f"the list has {', '.join(names)} and not {model}")


def _chat(server: Server, model: str) -> None:
    answer = server.post("/v1/chat/completions", {"model": model, "messages": _HELLO, "max_tokens": _FEW})
    choice = answer["choices"][0]
    _demand(choice["finish_reason"] in {"stop", "length"}, f"finish_reason is {choice['finish_reason']!r}")
    _demand(isinstance(choice["message"]["content"], str), "the message has no text")
    _demand(answer["usage"]["completion_tokens"] > 0, "usage counts no tokens")


def _chat_stream(server: Server, model: str) -> None:
    body = {"model": model, "messages": _HELLO, "max_tokens": _FEW, "stream": True}
    *events, end = _events(
        server.post_text("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    )
    _demand(end == "[DONE]", "the stream does not end with [DONE]")
    chunks = [json.loads(event) for event in events]
    ends = [
        choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]
    ]
    _demand(len(ends) == 1, f"the stream has {len(ends)} finish reasons")
    _demand(bool(chunks[-1].get("usage")), "the last chunk has no usage")


def _chat_tools(server: Server, model: str) -> None:
    choice = {"type": "function", "function": {"name": "get_time"}}
    body = {
        "model": model,
        "messages": _HELLO,
        "max_tokens": 64,
        "tools": [{"type": "function", "function": _TOOL}],
    }
    message = server.post("/v1/chat/completions", {**body, "tool_choice": choice})["choices"][0]["message"]
    call = message["tool_calls"][0]
    _demand(call["function"]["name"] == "get_time", "the tool that must be called is not")
    _demand(isinstance(json.loads(call["function"]["arguments"]), dict), "the arguments are no JSON object")


def _json_schema(server: Server, model: str) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    body = {"model": model, "messages": _HELLO, "max_tokens": 32, "response_format": form}
    text = server.post("/v1/chat/completions", body)["choices"][0]["message"]["content"]
    _demand(isinstance(json.loads(text)["ok"], bool), "the answer is not of the schema")


def _responses(server: Server, model: str) -> None:
    _check_response(_responded(server, model))


def _responses_socket(server: Server, model: str) -> None:
    body = {"type": "response.create", "model": model, "input": "Say hello.", "max_output_tokens": _FEW}
    _check_response(server.converse("/v1/responses", body, {*_ENDS, "response.failed", "error"}))


def _responded(server: Server, model: str, **fields: Any) -> list[dict[str, Any]]:
    """The events of an answer."""
    body = {"model": model, "input": "Say hello.", "max_output_tokens": _FEW, "stream": True, "store": False}
    return [json.loads(event) for event in _events(server.post_text("/v1/responses", {**body, **fields}))]


def _check_response(events: list[dict[str, Any]]) -> None:
    kinds = [event["type"] for event in events]
    _demand(kinds[0] == "response.created", f"the first event is {kinds[0]}")
    _demand(kinds[-1] in _ENDS, f"the last event is {kinds[-1]}")
    _demand("response.output_item.done" in kinds, "no item is done")
    _demand(events[-1]["response"]["usage"]["output_tokens"] > 0, "usage counts no tokens")


def _responses_tools(server: Server, model: str) -> None:
    choice = {"type": "function", "name": "get_time"}
    item = _called(server, model, {"type": "function", **_TOOL}, choice, "function_call")
    _demand(isinstance(json.loads(item["arguments"]), dict), "the arguments are no JSON object")


def _responses_custom(server: Server, model: str) -> None:
    form = {"type": "grammar", "syntax": "regex", "definition": "[a-z]{1,8}"}
    tool = {"type": "custom", "name": "get_time", "description": _TOOL["description"], "format": form}
    item = _called(server, model, tool, {"type": "custom", "name": "get_time"}, "custom_tool_call")
    fits = 1 <= len(item["input"]) <= 8 and item["input"].isalpha()
    _demand(fits, f"the input is {item['input'][:40]!r}, which its grammar does not allow")


def _called(server: Server, model: str, tool: Any, choice: Any, kind: str) -> dict[str, Any]:
    """The call of a tool that must be called."""
    events = _responded(server, model, tools=[tool], tool_choice=choice, max_output_tokens=64)
    _check_response(events)
    calls = [item for item in events[-1]["response"]["output"] if item["type"] == kind]
    _demand(bool(calls) and calls[0]["name"] == "get_time", "the tool that must be called is not")
    _demand(bool(calls[0]["call_id"]), "the call has no id")
    return calls[0]


def _messages(server: Server, model: str) -> None:
    body = {"model": model, "messages": _HELLO, "max_tokens": _FEW}
    answer = server.post("/v1/messages", body, _ANTHROPIC)
    _demand(answer["stop_reason"] in {"end_turn", "max_tokens"}, f"stop_reason is {answer['stop_reason']!r}")
    _demand(answer["usage"]["output_tokens"] > 0, "usage counts no tokens")
    answer = server.post("/v1/messages", {**body, "model": "claude-sonnet-4-5"}, _ANTHROPIC)
    _demand(
        bool(answer["content"]) or answer["usage"]["output_tokens"] > 0, "a claude model's name is not taken"
    )


def _messages_stream(server: Server, model: str) -> None:
    body = {"model": model, "messages": _HELLO, "max_tokens": _FEW, "stream": True}
    kinds = [
        json.loads(event)["type"] for event in _events(server.post_text("/v1/messages", body, _ANTHROPIC))
    ]
    _demand(kinds[0] == "message_start", f"the first event is {kinds[0]}")
    _demand(kinds[-2:] == ["message_delta", "message_stop"], f"the last events are {kinds[-2:]}")


def _messages_tools(server: Server, model: str) -> None:
    properties = {"zone": {"enum": ["UTC", "local"]}}
    schema = {**_NOTHING, "properties": properties, "required": ["zone"]}
    tool = {"name": _TOOL["name"], "description": _TOOL["description"], "input_schema": schema}
    choice = {"type": "tool", "name": "get_time"}
    body = {"model": model, "messages": _HELLO, "max_tokens": 64, "tools": [tool], "tool_choice": choice}
    answer = server.post("/v1/messages", body, _ANTHROPIC)
    _demand(answer["stop_reason"] == "tool_use", f"stop_reason is {answer['stop_reason']!r}")
    call, *_ = [block for block in answer["content"] if block["type"] == "tool_use"]
    _demand(call["name"] == "get_time", "the tool that must be called is not")
    _demand("zone" in call["input"], "the input is not what the tool asks for")
    text = server.post_text("/v1/messages", {**body, "stream": True}, _ANTHROPIC)
    events = [json.loads(event) for event in _events(text)]
    blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    _demand("tool_use" in {block["type"] for block in blocks}, "the stream has no call")
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    pieces = [delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta"]
    _demand("zone" in json.loads("".join(pieces) or "{}"), "the stream's input is not what the tool asks for")
    # The result goes back, as the client's next turn.
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "Noon."}
    turns = [*_HELLO, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    more = {"model": model, "messages": turns, "max_tokens": _FEW, "tools": [tool]}
    answer = server.post("/v1/messages", more, _ANTHROPIC)
    _demand(answer["usage"]["output_tokens"] > 0, "a result that is sent back is not answered")


def _count_tokens(server: Server, model: str) -> None:
    answer = server.post("/v1/messages/count_tokens", {"model": model, "messages": _HELLO}, _ANTHROPIC)
    _demand(answer["input_tokens"] > 0, "no tokens are counted")


def _ollama(server: Server, model: str) -> None:
    _demand("version" in server.get("/api/version"), "no version")
    names = [each["name"] for each in server.get("/api/tags")["models"]]
    _demand(model in names, f"the list has {', '.join(names)} and not {model}")


def _events(text: str) -> list[str]:
    """The data of a stream's events."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


CHECKS: tuple[tuple[str, str, Callable[[Server, str], Any]], ...] = (
    ("/", "claude", _root),
    ("/v1/models", "all", _models),
    ("/v1/chat/completions", "aider, mini, qwen, opencode", _chat),
    ("the same as a stream", "aider, qwen, opencode", _chat_stream),
    ("the same with a tool that must be called", "qwen, opencode", _chat_tools),
    ("the same with a JSON schema", "SDKs", _json_schema),
    ("/v1/responses as a stream", "codex", _responses),
    ("the same with a tool that must be called", "codex", _responses_tools),
    ("the same with a custom tool and its grammar", "codex", _responses_custom),
    ("the same as a websocket", "codex", _responses_socket),
    ("/v1/messages", "claude", _messages),
    ("the same as a stream", "claude", _messages_stream),
    ("the same with a tool that must be called", "claude", _messages_tools),
    ("/v1/messages/count_tokens", "claude", _count_tokens),
    ("/api/tags", "editors that look for Ollama", _ollama),
)
