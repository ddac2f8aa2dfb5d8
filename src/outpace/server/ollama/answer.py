"""Writes one answer in Ollama's form: a JSON object a line while it comes, or one object."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import Any

from outpace.server.encoding import to_json
from outpace.server.errors import APIError
from outpace.server.generation import Generation
from outpace.server.timings import Timings, timed_text
from outpace.types import FinishReason, TokenDelta

NDJSON = "application/x-ndjson"


def message_field(text: str) -> dict[str, Any]:
    """The text of a chat."""
    return {"message": {"role": "assistant", "content": text}}


def response_field(text: str) -> dict[str, Any]:
    """The text of a completion."""
    return {"response": text}


def error_line(error: APIError) -> str:
    """An error in this dialect's form."""
    return to_json({"error": error.message}) + "\n"


class Answer:
    """One answer. `name` is the model's, as the answer shows it; `field` wraps its text."""

    def __init__(self, name: str, field: Callable[[str], dict[str, Any]]) -> None:
        self._name = name
        self._field = field
        self._timings = Timings()

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer in one piece."""
        text, last = await timed_text(generation, self._timings)
        return self._end(last, text)

    async def lines(self, generation: Generation) -> AsyncGenerator[bytes]:
        """The answer as lines, the last of which says that it is done."""
        async for _, delta in generation.deltas():
            self._timings.observe(delta)
            if delta.finish_reason is not None:
                yield f"{to_json(self._end(delta, delta.text))}\n".encode()
            elif delta.text:
                yield f"{to_json({**self._head(), **self._field(delta.text), 'done': False})}\n".encode()

    def _head(self) -> dict[str, Any]:
        return {"model": self._name, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}

    def _end(self, last: TokenDelta, text: str) -> dict[str, Any]:
        times = self._timings
        return {
            **self._head(),
            **self._field(text),
            "done": True,
            "done_reason": "length" if last.finish_reason is FinishReason.LENGTH else "stop",
            "total_duration": _nanoseconds(times.total_seconds),
            "load_duration": 0,
            "prompt_eval_count": last.num_prompt_tokens,
            "prompt_eval_duration": _nanoseconds(times.prompt_seconds),
            "eval_count": last.num_output_tokens,
            "eval_duration": _nanoseconds(times.decode_seconds),
        }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
