"""Signs of life on a stream that has nothing to say: a long prompt is read, or a call is held back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from starlette.types import Message, Send


@asynccontextmanager
async def heartbeat(send: Send, sign: Callable[[], bytes], seconds: float) -> AsyncGenerator[Send]:
    """A `send` for the parts of an answer's body. While inside, so many seconds of silence bring a `sign()`.

    One timer watches the whole stream, so that parts which come in time cost nothing.
    """
    silent_since, sending = time.monotonic(), False

    async def send_part(message: Message) -> None:
        nonlocal silent_since, sending
        sending = True
        await send(message)
        silent_since, sending = time.monotonic(), False

    async def beat() -> None:
        wait = seconds
        while True:
            await asyncio.sleep(wait)
            wait = silent_since + seconds - time.monotonic()
            if wait <= 0:
                if not sending:  # else it is the client who does not read
                    await send({"type": "http.response.body", "body": sign(), "more_body": True})
                wait = seconds

    beating = asyncio.create_task(beat())
    try:
        yield send_part
    finally:
        beating.cancel()
