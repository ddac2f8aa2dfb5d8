"""Writes one answer in Ollama's form: a JSON object a line while it comes, or one object."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, Literal

from outpace.server.answer import Progress, call_input, calls_in, new_call_id
from outpace.server.encoding import to_json
from outpace.server.errors import APIError
from outpace.server.generation import Generation
from outpace.server.timings import Timings
from outpace.text.tool_calls.pieces import CallArguments, CallBegin, Piece, Text, Thinking
from outpace.types import TokenDelta

NDJSON = "application/x-ndjson"


def error_line(error: APIError) -> str:
    """An error in this dialect's form."""
    return to_json({"error": error.message}) + "\n"


def wire_time(when: datetime) -> str:
    """A time, UTC, as this dialect writes it."""
    return when.isoformat().replace("+00:00", "Z")


class Answer:
    """One answer. `name` is the model's, as the answer shows it; `kind` says where its text stands.

    `thinks`: the client wants the model's thoughts.
    """

    def __init__(
        self,
        name: str,
        kind: Literal["message", "response"],
        read: Callable[[Generation], AsyncIterator[Progress]],
        *,
        thinks: bool,
    ) -> None:
        self._name = name
        self._kind = kind
        self._read = read
        self._thinks = thinks
        self._timings = Timings()
        self._num_calls = 0

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer in one piece. Raises `APIError` where it fails or the client leaves."""
        pieces: list[Piece] = []
        last: Progress | None = None
        async for last in self._read(generation):
            self._timings.observe(last.delta)
            pieces += last.pieces
        assert last is not None, "a generation ends with a delta"
        return {**self._head(), **self._said(pieces), **self._end(last)}

    async def lines(self, generation: Generation) -> AsyncGenerator[bytes]:
        """The answer as lines, the last of which says that it is done. A call comes whole, in one line."""
        unfinished: list[Piece] = []  # of a call
        async for progress in self._read(generation):
            self._timings.observe(progress.delta)
            ready, unfinished = _split(unfinished + progress.pieces)
            if progress.end is not None:
                ready += unfinished
            said = self._said(ready)
            if said != self._said([]):
                yield self._line(said)
            if progress.end is not None:
                yield f"{to_json({**self._head(), **self._said([]), **self._end(progress)})}\n".encode()

    def nothing_yet(self) -> bytes:
        """A sign of life: a line without text, as Ollama's own server sends for tokens that show none."""
        return self._line(self._said([]))

    def _line(self, said: dict[str, Any]) -> bytes:
        return f"{to_json({**self._head(), **said, 'done': False})}\n".encode()

    def _head(self) -> dict[str, Any]:
        return {"model": self._name, "created_at": wire_time(datetime.now(UTC))}

    def _said(self, pieces: list[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
        thoughts = "".join(piece.text for piece in pieces if isinstance(piece, Thinking))
        extra: dict[str, Any] = {"thinking": thoughts} if thoughts and self._thinks else {}
        if self._kind == "response":
            return {"response": text, **extra}
        if calls := calls_in(pieces):
            extra["tool_calls"] = [self._call(call.name, call.arguments) for call in calls]
        return {"message": {"role": "assistant", "content": text, **extra}}

    def _call(self, name: str, arguments: str) -> dict[str, Any]:
        index, self._num_calls = self._num_calls, self._num_calls + 1
        function = {"index": index, "name": name, "arguments": call_input(arguments)}
        return {"id": new_call_id("call_", short=False), "function": function}

    def _end(self, last: Progress) -> dict[str, Any]:
        times = self._timings
        delta: TokenDelta = last.delta
        return {
            "done": True,
            "done_reason": "length" if last.end == "length" else "stop",
            "total_duration": _nanoseconds(times.total_seconds),
            "load_duration": 0,
            "prompt_eval_count": delta.num_prompt_tokens,
            "prompt_eval_duration": _nanoseconds(times.prompt_seconds),
            "eval_count": delta.num_output_tokens,
            "eval_duration": _nanoseconds(times.decode_seconds),
        }


def _split(pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
    """What can be told now, and a call that has begun but not ended."""
    for at in range(len(pieces) - 1, -1, -1):
        match pieces[at]:
            case CallBegin():
                return pieces[:at], pieces[at:]
            case CallArguments():
                pass
            case _:
                break
    return pieces, []


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
