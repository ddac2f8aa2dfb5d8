"""Writes one message: as events while it comes, or in one piece."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from outpace.server.answer import Progress, call_input, calls_in, new_call_id
from outpace.server.anthropic.conversation import shows_thinking, wants_cache
from outpace.server.anthropic.events import PING, SIGNATURE, MessageEvents
from outpace.server.anthropic.schema import MessageRequest
from outpace.server.generation import Generation, Usage
from outpace.server.served import ServedModel
from outpace.text.tool_calls.pieces import CallArguments, CallBegin, CallEnd, Piece, Text, Thinking, merged
from outpace.types import BLOCK_SIZE


class MessageAnswer:
    """One answer. `name` is the model's, as the answer shows it."""

    def __init__(
        self,
        name: str,
        request: MessageRequest,
        served: ServedModel,
        read: Callable[[Generation], AsyncIterator[Progress]],
    ) -> None:
        self._id = f"msg_{uuid.uuid4().hex}"
        self._name = name
        self._read = read
        self._fills_cache = served.llm.config.prefix_cache and wants_cache(request)
        self._thinks = shows_thinking(request)
        self._only_reads = request.max_tokens == 0
        self._speed = {} if request.speed is None else {"speed": request.speed}
        self._short_ids = served.form.family.short_ids

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer in one piece. Raises `APIError` where it fails or the client leaves."""
        pieces: list[Piece] = []
        last: Progress | None = None
        async for last in self._read(generation):
            pieces += last.pieces
        assert last is not None, "a generation ends with a delta"
        reason, stop = self._end(last)
        return {
            **self._head(self._usage(generation.usage)),
            "content": self._content(pieces),
            "stop_reason": reason,
            "stop_sequence": stop,
        }

    def _content(self, pieces: list[Piece]) -> list[dict[str, Any]]:
        calls = iter(calls_in(pieces))
        content: list[dict[str, Any]] = []
        for piece in () if self._only_reads else merged(pieces):
            match piece:
                case Text(text):
                    content.append({"type": "text", "text": text})
                case Thinking(text) if self._thinks:
                    content.append({"type": "thinking", "thinking": text, "signature": SIGNATURE})
                case CallBegin(name):
                    call = {"name": name, "input": call_input(next(calls).arguments)}
                    content.append({"type": "tool_use", "id": self._call_id(), **call})
                case _:
                    pass
        return content

    async def events(self, generation: Generation) -> AsyncGenerator[bytes]:
        """The answer as server-sent events, the terminal one included."""
        write = MessageEvents()
        # What the prefix cache holds of the prompt is known with the first token; the last usage tells.
        at_start = self._wire_usage(sum(generation.usage.prompt_tokens), 0, 0, 0)
        yield (write.start(self._head(at_start)) + PING).encode()
        async for progress in self._read(generation):
            pieces = () if self._only_reads else progress.pieces
            text = "".join(self._event(write, piece) for piece in pieces)
            if progress.end is not None:
                text += write.end(*self._end(progress), self._usage(generation.usage))
            if text:
                yield text.encode()

    def _event(self, write: MessageEvents, piece: Piece) -> str:
        match piece:
            case Text(text):
                return write.text(text)
            case Thinking(text):
                return write.thinking(text) if self._thinks else ""
            case CallBegin(name):
                return write.tool_use(self._call_id(), name)
            case CallArguments(text):
                return write.tool_input(text)
            case CallEnd():
                return ""

    def _call_id(self) -> str:
        return new_call_id("toolu_", short=self._short_ids)

    def _head(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _usage(self, usage: Usage) -> dict[str, Any]:
        prompt, cached = sum(usage.prompt_tokens), sum(usage.cached_tokens)
        created = max(0, prompt // BLOCK_SIZE * BLOCK_SIZE - cached) if self._fills_cache else 0
        output = 0 if self._only_reads else sum(usage.completion_tokens.values())
        return self._wire_usage(prompt, cached, created, output)

    def _wire_usage(self, prompt: int, cached: int, created: int, output: int) -> dict[str, Any]:
        """The `usage` object. Its three kinds of input tokens add up to the prompt.

        All full blocks of a prompt are cached; they are counted as created where the client asked for it.
        """
        return {
            "input_tokens": prompt - cached - created,
            "cache_creation_input_tokens": created,
            "cache_read_input_tokens": cached,
            "output_tokens": output,
            "service_tier": "standard",
            **self._speed,
        }

    def _end(self, last: Progress) -> tuple[str, str | None]:
        """The stop reason, and the stop sequence where that is it."""
        if last.end == "length" or self._only_reads:
            return "max_tokens", None
        if last.end == "tool_calls":
            return "tool_use", None
        if last.delta.stop is not None:
            return "stop_sequence", last.delta.stop
        return "end_turn", None
