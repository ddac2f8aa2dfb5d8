"""Signs of life on a stream whose first token takes long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


async def with_heartbeat(items: AsyncIterator[T], seconds: float) -> AsyncGenerator[T | None]:
    """`items`, with None in between whenever so many seconds have passed without the first of them."""
    first = asyncio.ensure_future(anext(items))
    try:
        while not (await asyncio.wait([first], timeout=seconds))[0]:
            yield None
        yield await first
    finally:
        first.cancel()
    async for item in items:
        yield item
