"""Server-sent events, or lines: the response that streams, and ends exactly once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from outpace.server.errors import APIError, from_exception
from outpace.server.generation import Generation
from outpace.server.heartbeat import heartbeat

DONE = b"data: [DONE]\n\n"
COMMENT = b": waiting\n\n"
"""What clients skip."""


class EventStream(Response):
    """Sends `events` as they come, each already encoded, and cancels `generation` when the client leaves.

    `events` ends with its own terminal event. Where it raises instead, the error is the terminal
    event, since the status line is long gone; `encode_error` writes it in the dialect's form. After
    `silence` seconds without an event, `sign_of_life` is sent.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        generation: Generation,
        silence: float,
        encode_error: Callable[[APIError], str] = lambda error: f"data: {error.body()}\n\n",
        sign_of_life: Callable[[], bytes] = lambda: COMMENT,
        media_type: str = "text/event-stream",
    ) -> None:
        self.media_type = media_type
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._generation = generation
        self._silence = silence
        self._encode_error = encode_error
        self._sign_of_life = sign_of_life

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        """Run the response (ASGI)."""
        async with self._generation.cancelled_on_disconnect(receive), aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            end = b""
            try:
                async with heartbeat(send, self._sign_of_life, self._silence) as send_part:
                    async for event in events:
                        await send_part({"type": "http.response.body", "body": event, "more_body": True})
            except Exception as error:  # whatever it is, the client must learn that the stream has ended
                end = self._encode_error(from_exception(error)).encode()
            await send({"type": "http.response.body", "body": end, "more_body": False})
