"""Clients that leave while their prompt is computed, and come back: through real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import KV_CACHE_BYTES, MAX_CONTEXT, RunningServer, open_raw, running

from outpace.llm import LLM
from outpace.server.settings import ServerSettings
from outpace.types import BLOCK_SIZE, StepBatch, StepOutput

CHUNK = 2 * BLOCK_SIZE  # rows of a step: a prompt takes more than ten
LEFT_AFTER = 2 * CHUNK  # tokens of the prompt
DIALECTS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
SIGNS = {"openai": b": waiting", "anthropic": b"event: ping"}


@pytest.fixture(scope="module")
def chunked_llm(model_135m: Path) -> Iterator[LLM]:
    with LLM(
        model_135m,
        backend="null",
        max_context=MAX_CONTEXT,
        kv_cache_bytes=KV_CACHE_BYTES,
        max_batch_tokens=CHUNK,
    ) as llm:
        yield llm


class Slow:
    """The backend, a little slower, with the rows of its steps."""

    def __init__(self, llm: LLM) -> None:
        self._backend = llm.backend
        self.rows: list[int] = []
        self.seconds = 0.05

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def step(self, batch: StepBatch) -> StepOutput:
        self.rows.append(batch.num_rows)
        time.sleep(self.seconds)
        return self._backend.step(batch)


@pytest.fixture
def backend(chunked_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow(chunked_llm)
    monkeypatch.setattr(chunked_llm.loop.engine, "backend", slow)
    return slow


@pytest.fixture
def server(chunked_llm: LLM) -> Iterator[RunningServer]:
    with running(chunked_llm, ServerSettings(port=0, shutdown_grace=0.2, heartbeat=0.02)) as state:
        yield state


def question(about: str, *, stream: bool = False) -> dict[str, Any]:
    """A prompt of more than 700 tokens, of its own from its beginning on."""
    messages = [{"role": "user", "content": f"{about}: " + "the sea " * 350}]
    return {"model": "test-model", "messages": messages, "max_tokens": 3, "stream": stream}


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def wait_until_computed(server: RunningServer, num_tokens: int) -> None:
    running = server.llm.loop.engine.scheduler.running
    wait_for(lambda: any(request.num_computed_tokens >= num_tokens for request in list(running)))


def usage(answer: httpx.Response) -> tuple[int, int]:
    """The prompt's tokens and those of the cache."""
    assert answer.status_code == 200, answer.text
    said = answer.json()["usage"]
    if "prompt_tokens" in said:
        return said["prompt_tokens"], said["prompt_tokens_details"]["cached_tokens"]
    return said["input_tokens"] + said["cache_read_input_tokens"], said["cache_read_input_tokens"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_prompt_stops_with_its_client_and_goes_on_with_it(
    server: RunningServer, backend: Slow, dialect: str, stream: bool
) -> None:
    body = question(f"{dialect} {stream}", stream=stream)
    connection = open_raw(server, DIALECTS[dialect], body)
    wait_until_computed(server, LEFT_AFTER)
    if stream:
        seen = b""
        while SIGNS[dialect] not in seen:
            seen += connection.recv(4096)
    connection.close()
    server.wait_idle(30)
    computed = sum(backend.rows)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        metrics = http.get("/metrics").text
        assert 'outpace:num_requests_running{model_name="test-model"} 0.0' in metrics
        assert 'outpace:kv_blocks_held{model_name="test-model"} 0.0' in metrics
        backend.seconds = 0.0
        num_tokens, num_cached = usage(http.post(DIALECTS[dialect], json={**body, "stream": False}))
    assert num_tokens > 10 * CHUNK
    assert computed < num_tokens - CHUNK, "the prompt was computed to its end for nobody"
    assert num_cached == computed // BLOCK_SIZE * BLOCK_SIZE, "what was computed was not kept"
    server.wait_idle()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_resent_request_joins_the_first_and_outlives_it(
    server: RunningServer, backend: Slow, dialect: str
) -> None:
    body = question(f"again {dialect}")
    first = open_raw(server, DIALECTS[dialect], body)
    wait_until_computed(server, CHUNK)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(httpx.post, server.url + DIALECTS[dialect], json=body, timeout=60)
        scheduler = server.llm.loop.engine.scheduler
        wait_for(lambda: len(scheduler.running) + len(scheduler.waiting) == 2)
        first.close()
        num_tokens, num_cached = usage(second.result(60))
    assert num_cached >= CHUNK
    server.wait_idle()
    assert sum(backend.rows) <= num_tokens + 3 * CHUNK, "the prompt was computed twice"


def test_a_client_that_closes_its_half_has_left(server: RunningServer, backend: Slow) -> None:
    """A server can't tell it from one that is gone; the connection is closed, and nothing waits for it."""
    connection = open_raw(server, DIALECTS["openai"], question("half"))
    wait_until_computed(server, CHUNK)
    connection.shutdown(socket.SHUT_WR)
    server.wait_idle(30)
    connection.settimeout(30)
    connection.recv(4096)  # whatever it says, it says it at once
    connection.close()
    assert sum(backend.rows) < 10 * CHUNK


def test_requests_behind_a_proxy_that_stays_hold_nobody_up(server: RunningServer, backend: Slow) -> None:
    """Its clients have left, which it does not tell: another's request goes before the most of them."""
    abandoned = [open_raw(server, DIALECTS["openai"], question(f"gone {i}")) for i in range(6)]
    engine = server.llm.loop.engine
    wait_for(lambda: len(engine.scheduler.running) + len(engine.scheduler.waiting) == len(abandoned))
    answer = httpx.post(
        server.url + DIALECTS["openai"],
        json={**question("here"), "messages": [{"role": "user", "content": "Hello"}]},
        headers={"authorization": "Bearer another-client"},
        timeout=60,
    )
    assert answer.status_code == 200
    unfinished = len(engine.scheduler.running) + len(engine.scheduler.waiting)
    for connection in abandoned:
        connection.close()
    server.wait_idle(30)
    assert unfinished >= len(abandoned) - 2
