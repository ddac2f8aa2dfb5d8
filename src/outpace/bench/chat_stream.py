"""One streamed chat over HTTP, as any OpenAI-compatible server answers it, and when its parts came."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

_SAID = ("content", "reasoning_content", "reasoning")


@dataclass(slots=True)
class ChatTiming:
    """When one request's parts came. Seconds since `start`, which is `time.perf_counter()`'s."""

    start: float
    events: list[float] = field(default_factory=list[float])  # each event that brought text or a call
    end: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, as far as the server tells
    completion_tokens: int = 0
    counted: bool = False  # whether the server told the tokens; else each event counts as one
    finish_reason: str = ""
    error: str = ""  # its kind; "" where the answer came whole

    @property
    def ttft(self) -> float | None:
        """To the first event; None without one."""
        return self.events[0] if self.events else None

    @property
    def tpot(self) -> float | None:
        """(last event - first event) / (output tokens - 1); None below two tokens."""
        if self.completion_tokens < 2 or len(self.events) < 2:
            return None
        return (self.events[-1] - self.events[0]) / (self.completion_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Between one event and the next. Tokens that come together are one event."""
        return [later - earlier for earlier, later in zip(self.events, self.events[1:], strict=False)]


async def timed_chat(client: httpx.AsyncClient, body: dict[str, Any]) -> ChatTiming:
    """Ask `/chat/completions` below the client's address; what fails is told in the timing."""
    import httpx

    timing = ChatTiming(time.perf_counter())
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with client.stream("POST", "chat/completions", json=asked) as answer:
            if answer.status_code != 200:
                await answer.aread()
                timing.error = f"HTTP {answer.status_code}"
            else:
                await _read(answer, timing)
    except httpx.HTTPError as error:
        timing.error = type(error).__name__
    timing.end = time.perf_counter() - timing.start
    if not timing.counted:
        timing.completion_tokens = len(timing.events)
    return timing


async def _read(answer: httpx.Response, timing: ChatTiming) -> None:
    done = False
    async for line in answer.aiter_lines():
        if not line.startswith("data:"):
            continue
        now = time.perf_counter() - timing.start
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            done = True
            break
        try:
            _take(json.loads(data), now, timing)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            timing.error = "not the chat format"
            return
    if not timing.error and not (done or timing.finish_reason):
        timing.error = "cut"


def _take(event: dict[str, Any], now: float, timing: ChatTiming) -> None:
    if event.get("error"):
        timing.error = "error event"
        return
    if usage := event.get("usage"):
        timing.counted = True
        timing.prompt_tokens = usage["prompt_tokens"]
        timing.completion_tokens = usage["completion_tokens"]
        details: dict[str, Any] = usage.get("prompt_tokens_details") or {}
        timing.cached_tokens = details.get("cached_tokens") or 0
    choices: list[dict[str, Any]] = event.get("choices") or []
    for choice in choices:
        delta: dict[str, Any] = choice.get("delta") or {}
        if any(delta.get(name) for name in _SAID) or delta.get("tool_calls"):
            timing.events.append(now)
        timing.finish_reason = choice.get("finish_reason") or timing.finish_reason
