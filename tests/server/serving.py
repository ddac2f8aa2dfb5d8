"""A real server over a real engine: uvicorn in a thread, an ephemeral port, sockets."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest

from outpace.errors import BackendError
from outpace.llm import LLM
from outpace.server.run import GracefulServer, listen, make_server, url_of
from outpace.server.settings import ServerSettings
from outpace.server.tracing import Tracing
from outpace.types import StepBatch, StepOutput

MAX_CONTEXT = 1024
KV_CACHE_BYTES = 256 << 20


def native_is_built() -> bool:
    try:
        import outpace.backends.native_backend  # noqa: F401 - is it there?
    except ImportError:
        return False
    return True


@dataclass
class RunningServer:
    url: str
    llm: LLM
    name: str
    ended: threading.Event = field(default_factory=threading.Event)
    stop: Callable[[], None] = lambda: None

    def wait_idle(self, seconds: float = 10.0) -> None:
        """All requests have ended and all KV blocks are back, or the test fails."""
        engine = self.llm.loop.engine
        deadline = time.monotonic() + seconds
        while engine.has_work or engine.pool.num_held:
            assert time.monotonic() < deadline, f"{engine.pool.num_held} blocks are still held"
            time.sleep(0.005)
        engine.pool.check()


@contextmanager
def running(
    llm: LLM, settings: ServerSettings | None = None, tracing: Tracing | None = None
) -> Iterator[RunningServer]:
    """Serve `llm` in a thread; at the end, shut down as a signal would."""
    settings = settings or ServerSettings(port=0, shutdown_grace=0.2)
    server = make_server(llm, settings, model_name="test-model", tracing=tracing)
    state = RunningServer("", llm, "test-model")
    with listening(server, state) as url:
        state.url = url
        yield state


@contextmanager
def listening(server: GracefulServer, state: RunningServer | None = None) -> Iterator[str]:
    """Run a server in a thread; its address."""
    ready = threading.Event()
    server.on_ready = lambda _: ready.set()

    with listen(server.models.settings) as listener:

        def run() -> None:
            server.run([listener])
            if state is not None:
                state.ended.set()

        def stop() -> None:
            server.should_exit = True

        if state is not None:
            state.stop = stop
        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert ready.wait(20)
            yield url_of(listener)
        finally:
            stop()
            thread.join(20)
            assert not thread.is_alive(), "the server does not end"


def probe(http: httpx.Client) -> list[str]:
    """Answers that must stay the same whatever happened before."""
    body = {"prompt": ["The sea is", "def main():"], "max_tokens": 16, "seed": 3, "temperature": 0.7}
    return [choice["text"] for choice in http.post("/v1/completions", json=body).json()["choices"]]


async def random_client(client: openai.AsyncOpenAI, chance: random.Random) -> str:
    """Ask, read a while, and perhaps leave without a word."""
    request: dict[str, Any] = {
        "model": "test-model",
        "messages": [
            {"role": "user", "content": f"Tell me about {chance.random()} " * chance.randrange(1, 12)}
        ],
        "max_tokens": chance.randrange(1, 24),
        "n": chance.choice([1, 1, 2]),
        "seed": chance.randrange(1000),
    }
    leave_after = chance.choice([None, None, 0, 1, 5])
    if chance.random() < 0.3:
        call = asyncio.create_task(client.chat.completions.create(**request))
        if leave_after is not None:
            await asyncio.sleep(chance.random() * 0.1)
            call.cancel()
        try:
            return (await call).choices[0].finish_reason
        except asyncio.CancelledError:
            return "left"
    reasons: list[str] = []
    async with await client.chat.completions.create(stream=True, **request) as stream:
        count = 0
        async for chunk in stream:
            if count == leave_after:
                return "left"
            count += 1
            reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
    assert len(reasons) == request["n"], "exactly one end for each choice"
    return reasons[0]


def run_random_clients(server: RunningServer, count: int, seed: int) -> list[str]:
    """How each of `count` concurrent clients ended: its finish reason or `"left"`."""

    async def main() -> list[str]:
        base_url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key="x", max_retries=0, timeout=60) as client:
            clients = (random_client(client, random.Random(seed * 1000 + i)) for i in range(count))
            return await asyncio.gather(*clients)

    return asyncio.run(main())


def check_outcomes(outcomes: list[str]) -> None:
    """Some clients left, some stayed to the end, and nothing else happened."""
    assert set(outcomes) <= {"left", "length", "stop"}
    assert outcomes.count("left") >= 5
    assert len(outcomes) - outcomes.count("left") >= 5


def open_raw(
    server: RunningServer, path: str, body: dict[str, Any], receive_buffer: int = 0
) -> socket.socket:
    """Send a request on a socket of our own, to be closed or left unread at will."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect((host, int(port)))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def wait_until_busy(server: RunningServer) -> None:
    deadline = time.monotonic() + 5
    while not server.llm.loop.engine.pool.num_held:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def failing_at(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the backend fail once the countdown in the returned list is over."""
    countdown = [0]
    engine = llm.loop.engine
    step = engine.backend.step

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(llm.backend, name)

        def step(self, batch: StepBatch) -> StepOutput:
            countdown[0] -= 1
            if countdown[0] == 0:
                raise BackendError("the step broke")
            return step(batch)

    monkeypatch.setattr(engine, "backend", Failing())
    return countdown


def slowed(llm: LLM, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.01) -> None:
    """Let every step take so much longer."""
    step = llm.loop.engine.backend.step

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(llm.backend, name)

        def step(self, batch: StepBatch) -> StepOutput:
            time.sleep(seconds)
            return step(batch)

    monkeypatch.setattr(llm.loop.engine, "backend", Slow())
