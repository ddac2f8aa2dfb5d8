"""Writes one message: as events while it comes, or in one piece."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from outpace.server.anthropic.conversation import wants_cache
from outpace.server.anthropic.events import PING, MessageEvents
from outpace.server.anthropic.schema import MessageRequest
from outpace.server.generation import Generation, Usage
from outpace.server.heartbeat import with_heartbeat
from outpace.server.served import ServedModel
from outpace.types import BLOCK_SIZE, FinishReason, TokenDelta


class MessageAnswer:
    """One answer. `name` is the model's, as the answer shows it."""

    def __init__(self, name: str, request: MessageRequest, served: ServedModel) -> None:
        self._id = f"msg_{uuid.uuid4().hex}"
        self._name = name
        self._heartbeat = served.settings.heartbeat
        self._fills_cache = served.llm.config.prefix_cache and wants_cache(request)

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer in one piece. Raises `APIError` where it fails or the client leaves."""
        texts: list[str] = []
        last: TokenDelta | None = None
        async for _, last in generation.deltas():
            texts.append(last.text)
        assert last is not None, "a generation ends with a delta"
        text = "".join(texts)
        content = [{"type": "text", "text": text}] if text else []
        reason, stop = _end(last)
        usage = self._usage(generation.usage)
        return {
            **self._head(usage),
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
        }

    async def events(self, generation: Generation) -> AsyncGenerator[bytes]:
        """The answer as server-sent events, the terminal one included."""
        write = MessageEvents()
        # What the prefix cache holds of the prompt is known with the first token; the last usage tells.
        at_start = self._wire_usage(sum(generation.usage.prompt_tokens), 0, 0, 0)
        yield (write.start(self._head(at_start)) + PING).encode()
        last_said = time.monotonic()
        async for item in with_heartbeat(generation.deltas(), self._heartbeat):
            text = PING
            if item is not None:
                delta = item[1]
                text = write.text(delta.text)
                if delta.finish_reason is not None:
                    text += write.end(*_end(delta), self._usage(generation.usage))
                elif not text and time.monotonic() - last_said > self._heartbeat:
                    text = PING
            if text:
                last_said = time.monotonic()
                yield text.encode()

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
        return self._wire_usage(prompt, cached, created, sum(usage.completion_tokens.values()))

    @staticmethod
    def _wire_usage(prompt: int, cached: int, created: int, output: int) -> dict[str, Any]:
        """The `usage` object. Its three kinds of input tokens add up to the prompt.

        All full blocks of a prompt are cached; they are counted as created where the client asked for it.
        """
        return {
            "input_tokens": prompt - cached - created,
            "cache_creation_input_tokens": created,
            "cache_read_input_tokens": cached,
            "output_tokens": output,
            "service_tier": "standard",
        }


def _end(last: TokenDelta) -> tuple[str, str | None]:
    """The stop reason, and the stop sequence where that is it."""
    if last.finish_reason is FinishReason.LENGTH:
        return "max_tokens", None
    if last.stop is not None:
        return "stop_sequence", last.stop
    return "end_turn", None
