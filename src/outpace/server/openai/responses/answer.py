"""Writes one response: as events while it comes, or in one piece."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from outpace.server.answer import EndReason, Progress
from outpace.server.errors import APIError
from outpace.server.generation import Generation, Usage
from outpace.server.lanes import lane_of
from outpace.server.openai.responses.items import ItemWriter
from outpace.server.openai.responses.schema import ResponseRequest
from outpace.server.openai.responses.tools import ShownTools
from outpace.server.served import ServedModel


class ResponseAnswer:
    """One response. `name` is the model's, as the answer shows it; `on_end` gets it when it is whole."""

    def __init__(
        self,
        name: str,
        request: ResponseRequest,
        served: ServedModel,
        tools: ShownTools,
        read: Callable[[Generation], AsyncIterator[Progress]],
        on_end: Callable[[dict[str, Any]], None],
    ) -> None:
        self._read = read
        self._on_end = on_end
        self._writer = ItemWriter(
            tools,
            short_ids=served.form.family.short_ids,
            wraps_thoughts="reasoning.encrypted_content" in (request.include or ()),
        )
        self._head = _head(name, request, served)

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The response in one piece. Raises `APIError` where it fails or the client leaves."""
        end: EndReason | None = None
        async for progress in self._read(generation):
            for piece in progress.pieces:
                self._writer.piece(piece)
            end = progress.end
        return self._finished(end, generation.usage)[1]

    async def events(self, generation: Generation) -> AsyncGenerator[bytes]:
        """The response as server-sent events, the terminal one included."""
        write = self._writer
        started: dict[str, Any] = {**self._head, "output": []}
        yield (
            write.event("response.created", response=started)
            + write.event("response.in_progress", response=started)
        ).encode()
        end: EndReason | None = None
        async for progress in self._read(generation):
            text = "".join(write.piece(piece) for piece in progress.pieces)
            end = progress.end
            if text:
                yield text.encode()
        text, response = self._finished(end, generation.usage)
        yield (text + write.event(f"response.{response['status']}", response=response)).encode()

    async def warm_events(self, generation: Generation | None) -> AsyncGenerator[bytes]:
        """The events of a response without output: its prompt is in the cache, and can be gone on from.

        Without a generation there was nothing to read.
        """
        write = self._writer
        for kind in ("created", "in_progress"):
            yield write.event(f"response.{kind}", response={**self._head, "output": []}).encode()
        if generation is not None:
            async for _ in self._read(generation):
                pass
        usage = Usage([0], [0]) if generation is None else generation.usage
        response: dict[str, Any] = {**self._head, "status": "completed", "output": []}
        response["usage"] = _usage(usage)
        self._on_end(response)
        yield write.event("response.completed", response=response).encode()

    def refused(self, error: APIError) -> str:
        """The events of a response that fails before it begins."""
        started: dict[str, Any] = {**self._head, "output": []}
        return self._writer.event("response.created", response=started) + self.failed(error)

    def failed(self, error: APIError) -> str:
        """The terminal event of a response that fails."""
        said = {"code": error.code or "server_error", "message": error.message}
        response = {**self._head, "status": "failed", "error": said, "output": self._writer.items}
        return self._writer.event("response.failed", response=response)

    def _finished(self, end: EndReason | None, usage: Usage) -> tuple[str, dict[str, Any]]:
        """The last item's events, and the response."""
        cut = end == "length"
        text = self._writer.close(whole=not cut)
        response = {
            **self._head,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._writer.items,
            "usage": _usage(usage),
        }
        self._on_end(response)
        return text, response


def _head(name: str, request: ResponseRequest, served: ServedModel) -> dict[str, Any]:
    choice, defaults = request.tool_choice or "auto", served.settings.sampling
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": name,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {"effort": None, "summary": None, **(request.reasoning or {})},
        "store": request.store is not False,
        "temperature": defaults.get("temperature", 1.0)
        if request.temperature is None
        else request.temperature,
        "text": {"format": _format(request)},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(exclude_unset=True),
        "tools": [tool.model_dump(exclude_unset=True) for tool in request.tools or ()],
        "top_p": defaults.get("top_p", 1.0) if request.top_p is None else request.top_p,
        "truncation": request.truncation or "disabled",
        "usage": None,
        "service_tier": lane_of(request.service_tier),
        "user": None,
        "max_context": served.max_context,
    }


def _format(request: ResponseRequest) -> dict[str, Any]:
    if request.text is None or request.text.format is None:
        return {"type": "text"}
    return request.text.format.model_dump(exclude_unset=True, by_alias=True)


def _usage(usage: Usage) -> dict[str, Any]:
    prompt, output = sum(usage.prompt_tokens), sum(usage.completion_tokens.values())
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": sum(usage.cached_tokens)},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
        "total_tokens": prompt + output,
    }
