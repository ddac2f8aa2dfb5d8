"""Asks a server, as clients do, for everything that they need, and says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from outpace.clients.http import Server, ServerError

__all__ = ["Finding", "examine"]

_HELLO = [{"role": "user", "content": "Say hello."}]
_FEW = 8  # tokens: the form is what counts
_NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_TOOL: dict[str, Any] = {"name": "get_time", "description": "Tells the time.", "parameters": _NOTHING}
_ANTHROPIC = {"anthropic-version": "2023-06-01"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what it is for, and what is wrong ("" where nothing is)."""

    name: str
    needed_by: str
    problem: str


class _WrongError(Exception):
    """An answer is not what clients expect."""


def examine(server: Server, model: str) -> Iterator[Finding]:
    """Run all checks; each yields as it is done."""
    for name, needed_by, check in _CHECKS:
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
    body = {"model": model, "input": "Say hello.", "max_output_tokens": _FEW, "stream": True, "store": False}
    events = [json.loads(event) for event in _events(server.post_text("/v1/responses", body))]
    kinds = [event["type"] for event in events]
    _demand(kinds[0] == "response.created", f"the first event is {kinds[0]}")
    _demand(kinds[-1] in {"response.completed", "response.incomplete"}, f"the last event is {kinds[-1]}")
    _demand("response.output_item.done" in kinds, "no item is done")
    _demand(events[-1]["response"]["usage"]["output_tokens"] > 0, "usage counts no tokens")


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


_CHECKS: tuple[tuple[str, str, Callable[[Server, str], Any]], ...] = (
    ("/v1/models", "all", _models),
    ("/v1/chat/completions", "aider, mini, qwen, opencode", _chat),
    ("the same as a stream", "aider, qwen, opencode", _chat_stream),
    ("the same with a tool that must be called", "qwen, opencode", _chat_tools),
    ("the same with a JSON schema", "SDKs", _json_schema),
    ("/v1/responses as a stream", "codex", _responses),
    ("/v1/messages", "claude", _messages),
    ("the same as a stream", "claude", _messages_stream),
    ("/v1/messages/count_tokens", "claude", _count_tokens),
    ("/api/tags", "editors that look for Ollama", _ollama),
)
