"""What answers say in each dialect, event by event or whole: pieces, ends, counts of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["DIALECTS", "WRONG_FORM", "Said", "dialect_of"]

WRONG_FORM = (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError)
"""What reading JSON of another form raises; the last one where it is nested too deeply."""

Event = dict[str, Any]
_DONE = "[DONE]"
_NOT_DATA = ("event:", "id:", "retry:", ":")
_PARTS = ("content", "reasoning_content", "reasoning", "thinking", "tool_calls")


@dataclass(slots=True)
class Said:
    """What one event, or a whole answer, says. Counts are None where it tells none."""

    piece: bool = False  # text, a thought or a part of a call came
    finished: int = 0  # choices that ended here
    reason: str = ""  # why the last of them did
    end: bool = False  # nothing may follow
    error: bool = False
    prompt_tokens: int | None = None  # cached ones included
    cached_tokens: int | None = None
    completion_tokens: int | None = None


def _openai(event: Event) -> Said:
    """Chats and completions. A stream's end is `[DONE]`, no event."""
    choices: list[Event] = event.get("choices") or []
    said = Said(error=bool(event.get("error")))
    for choice in choices:
        part: Event = choice.get("delta") or choice.get("message") or choice
        said.piece |= any(part.get(name) for name in (*_PARTS, "text"))
        if choice.get("finish_reason"):
            said.finished += 1
            said.reason = choice["finish_reason"]
    if usage := event.get("usage"):
        said.prompt_tokens = usage["prompt_tokens"]
        said.completion_tokens = usage.get("completion_tokens", 0)
        details: Event = usage.get("prompt_tokens_details") or {}
        said.cached_tokens = details.get("cached_tokens") or 0
    return said


def _anthropic(event: Event) -> Said:
    kind = event["type"]
    said = Said(error=kind == "error", end=kind in {"message_stop", "message"})
    if kind == "content_block_delta":
        said.piece = any(event["delta"].get(name) for name in ("text", "thinking", "partial_json"))
    elif kind == "content_block_start":
        said.piece = event["content_block"]["type"] == "tool_use"
    message: Event = event.get("message") or event.get("delta") or event
    if reason := message.get("stop_reason"):
        said.finished, said.reason = 1, reason
    if usage := event.get("usage") or message.get("usage"):
        said.completion_tokens = usage.get("output_tokens")
        if "input_tokens" in usage:
            said.cached_tokens = usage.get("cache_read_input_tokens") or 0
            written = usage.get("cache_creation_input_tokens") or 0
            said.prompt_tokens = usage["input_tokens"] + said.cached_tokens + written
    return said


def _responses(event: Event) -> Said:
    kind: str = event.get("type", "")  # a whole answer has none
    said = Said(error=kind in {"error", "response.failed"}, piece=kind.endswith(".delta"))
    answer: Event = event.get("response") or event
    if answer.get("status") in {"completed", "incomplete", "failed", "cancelled"} and (
        answer is event or kind in {"response.completed", "response.incomplete", "response.failed"}
    ):
        said.end, said.finished, said.reason = True, 1, answer["status"]
        usage: Event = answer.get("usage") or {}
        said.prompt_tokens = usage.get("input_tokens")
        said.completion_tokens = usage.get("output_tokens")
        details: Event = usage.get("input_tokens_details") or {}
        said.cached_tokens = details.get("cached_tokens")
    return said


def _ollama(event: Event) -> Said:
    message: Event = event.get("message") or {}
    said = Said(error=bool(event.get("error")), end=event.get("done") is True)
    said.piece = bool(event.get("response")) or any(message.get(name) for name in _PARTS)
    if said.end:
        said.finished, said.reason = 1, event.get("done_reason") or "stop"
        said.prompt_tokens = event.get("prompt_eval_count")
        said.completion_tokens = event.get("eval_count")
    return said


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the answers of one path are read."""

    path: str  # below the server's address
    read: Callable[[Event], Said]
    streams: bool = False  # whether an answer streams unless the request says otherwise

    def read_line(self, line: str) -> Said | None:
        """What a line of a stream says, None for one that says nothing. Raises one of `WRONG_FORM`."""
        if not line or line.startswith(_NOT_DATA):
            return None
        data = line.removeprefix("data:").strip()
        return Said(end=True) if data == _DONE else self.read(json.loads(data))


DIALECTS = {
    dialect.path: dialect
    for dialect in (
        Dialect("/v1/chat/completions", _openai),
        Dialect("/v1/completions", _openai),
        Dialect("/v1/messages", _anthropic),
        Dialect("/v1/responses", _responses),
        Dialect("/api/chat", _ollama, streams=True),
        Dialect("/api/generate", _ollama, streams=True),
    )
}


def dialect_of(path: str) -> Dialect | None:
    """The dialect of a path, whatever stands before `/v1` or `/api`; None: nothing is generated there."""
    path = path.split("?", 1)[0].rstrip("/")
    found = (each for name, each in DIALECTS.items() if path.endswith(name))
    return next(found, None)
