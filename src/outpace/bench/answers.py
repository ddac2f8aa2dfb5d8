"""One answer over HTTP, in any dialect, and when its parts came."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outpace.bench.dialects import WRONG_FORM, Dialect, Said

if TYPE_CHECKING:
    import httpx

__all__ = ["AnswerTiming", "timed_answer"]


@dataclass(slots=True)
class AnswerTiming:
    """When one answer's parts came. Seconds since `start`, which is `time.perf_counter()`'s."""

    start: float
    events: list[float] = field(default_factory=list[float])  # each event that brought text or a call
    end: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, as far as the server tells
    completion_tokens: int = 0
    counted: bool = False  # whether the server told the tokens; else each event counts as one
    finish_reason: str = ""
    num_finished: int = 0  # choices that told how they ended
    num_ends: int = 0  # terminal events: one, where the answer is a stream that came whole
    num_after_end: int = 0  # events that came after it
    status: int = 0
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

    def take(self, said: Said, now: float) -> None:
        """One event, or a whole answer, came."""
        self.num_after_end += self.num_ends > 0
        if said.error:
            self.error = "error event"
        if said.piece:
            self.events.append(now)
        self.num_ends += said.end
        self.num_finished += said.finished
        self.finish_reason = said.reason or self.finish_reason
        if said.completion_tokens is not None:
            self.counted = True
            self.completion_tokens = said.completion_tokens
        self.prompt_tokens = self.prompt_tokens if said.prompt_tokens is None else said.prompt_tokens
        self.cached_tokens = self.cached_tokens if said.cached_tokens is None else said.cached_tokens


async def timed_answer(
    client: httpx.AsyncClient,
    dialect: Dialect,
    body: dict[str, Any],
    *,
    path: str | None = None,
    headers: Mapping[str, str] | None = None,
    leave_after: int | None = None,
) -> AnswerTiming:
    """Ask below the client's address; what fails is told in the timing.

    `path` is the dialect's unless told; with `leave_after` the connection is closed after so many pieces
    of a stream, and `num_ends` is 0 then. A whole answer has no `events`: only its end was seen.
    """
    import httpx

    timing = AnswerTiming(time.perf_counter())
    try:
        async with client.stream("POST", path or dialect.path, json=body, headers=headers) as answer:
            timing.status = answer.status_code
            if answer.status_code != 200:
                await answer.aread()
                timing.error = f"HTTP {answer.status_code}"
            elif body.get("stream", dialect.streams):
                await _read_stream(answer, dialect, timing, leave_after)
            else:
                timing.take(dialect.read(json.loads(await answer.aread())), 0.0)
                timing.events.clear()
    except httpx.HTTPError as error:
        timing.error = type(error).__name__
    except WRONG_FORM:
        timing.error = "not the dialect's form"
    timing.end = time.perf_counter() - timing.start
    if not timing.counted:
        timing.completion_tokens = len(timing.events)
    return timing


async def _read_stream(
    answer: httpx.Response, dialect: Dialect, timing: AnswerTiming, leave_after: int | None
) -> None:
    async for line in answer.aiter_lines():
        now = time.perf_counter() - timing.start
        said = dialect.read_line(line)
        if said is None:
            continue
        timing.take(said, now)
        if leave_after is not None and len(timing.events) >= leave_after:
            return
    if not timing.error and not (timing.num_ends or timing.finish_reason):
        timing.error = "cut"
