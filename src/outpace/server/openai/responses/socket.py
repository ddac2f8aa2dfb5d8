"""`/v1/responses` as a websocket: requests as messages in, the events of a stream as messages out.

One connection lasts for many turns of an agent. Each message is a request for a response with `"type":
"response.create"` in it; answers come one after the other. What the connection answered last can be gone on
from by `previous_response_id` even where `store` is false, for as long as the connection lasts.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from outpace.server.body import check_json
from outpace.server.deadlines import deadline_of
from outpace.server.encoding import to_json
from outpace.server.errors import APIError, from_exception
from outpace.server.model_pool import ModelPool
from outpace.server.openai.responses.answer import ResponseAnswer
from outpace.server.openai.responses.create import ContextExceededError, Keep, Memory, start_response, warm_up
from outpace.server.openai.responses.input_items import listed_items
from outpace.server.openai.responses.schema import CreateMessage, ResponseRequest
from outpace.server.openai.responses.store import ResponseStore, StoredResponse

MAX_WAITING = 8
"""Messages that may wait while an answer runs; one more closes the connection."""
_MAX_REMEMBERED = 4
_POLICY_VIOLATION = 1008


class ResponseSocket:
    """One connection."""

    def __init__(self, models: ModelPool, memory: Memory, socket: WebSocket) -> None:
        self._models = models
        self._shared = memory
        self._own = ResponseStore(max_responses=_MAX_REMEMBERED)
        self._socket = socket
        self._waiting: asyncio.Queue[tuple[bytes, float] | None] = asyncio.Queue()  # and when each came
        self._gone = asyncio.Event()

    async def run(self) -> None:
        """Answer until the client leaves."""
        await self._socket.accept()
        reader = asyncio.create_task(self._read())
        try:
            while (message := await self._waiting.get()) is not None:
                with self._models.live.turn():
                    await self._answer(*message)
        finally:
            reader.cancel()

    async def _read(self) -> None:
        """Take messages as they come, so that a client that leaves is noticed while an answer runs."""
        while (event := await self._socket.receive())["type"] != "websocket.disconnect":
            if self._waiting.qsize() >= MAX_WAITING:
                self._gone.set()  # nothing may be sent after this
                await self._socket.close(_POLICY_VIOLATION, "too many requests wait for an answer")
                break
            text = event.get("text")
            message = event.get("bytes", b"") if text is None else text.encode()
            self._waiting.put_nowait((message, time.perf_counter()))
        self._gone.set()
        self._waiting.put_nowait(None)

    async def _answer(self, message: bytes, arrived_at: float) -> None:
        try:
            body = check_json(message, CreateMessage)
            deadline = deadline_of(self._socket, body.deadline_ms, arrived_at)
            keep = self._keeper(shared=body.store is not False)
            memory = Memory(self._shared.scope, self._find, self._find_item, keep)
            async with self._models.lease(body.model, deadline=deadline) as (served, name):
                asked = (served, name, body, memory, len(message), deadline)
                if body.wants_answer:
                    answer, generation = await start_response(*asked)
                    events = answer.events(generation)
                else:
                    answer, generation = await warm_up(*asked)
                    events = answer.warm_events(generation)
        except ContextExceededError as error:
            await self._send(_messages(error.events))
            return
        except Exception as error:
            await self._send([_error_event(from_exception(error))])
            return
        if generation is None:
            await self._stream(answer, events)
            return
        async with generation.cancelled_on_disconnect(self._disconnected):
            await self._stream(answer, events)

    async def _stream(self, answer: ResponseAnswer, events: AsyncGenerator[bytes]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    await self._send(_messages(event.decode()))
        except Exception as error:  # whatever it is, the client must learn that the answer has ended
            await self._send(_messages(answer.failed(from_exception(error))))

    async def _send(self, messages: list[str]) -> None:
        for message in messages:
            if self._gone.is_set():
                return
            try:
                await self._socket.send_text(message)
            except WebSocketDisconnect:  # it left, and the reader has not been told yet
                self._gone.set()

    async def _disconnected(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def _find(self, response_id: str) -> StoredResponse | None:
        return self._own.get(response_id, self._shared.scope) or self._shared.find(response_id)

    def _find_item(self, item_id: str) -> dict[str, Any] | None:
        return self._own.item(item_id, self._shared.scope) or self._shared.find_item(item_id)

    def _keeper(self, *, shared: bool) -> Keep:
        def keep(response: dict[str, Any], messages: list[dict[str, Any]], body: ResponseRequest) -> None:
            self._own.put(response, messages, self._shared.scope, listed_items(body))
            if shared:
                self._shared.keep(response, messages, body)

        return keep


def _messages(events: str) -> list[str]:
    """The data of server-sent events."""
    return [line.removeprefix("data: ") for line in events.split("\n") if line.startswith("data: ")]


def _error_event(error: APIError) -> str:
    return to_json({"type": "error", "status": error.status, **json.loads(error.body())})
