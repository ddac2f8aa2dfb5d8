"""`deadline_ms` in every dialect: an honest end, or an honest error."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import KV_CACHE_BYTES, MAX_CONTEXT, RunningServer, running
from websockets.sync.client import connect

from outpace.llm import LLM

HELLO = [{"role": "user", "content": "Hello"}]
MANY = 900
"""Tokens that take far longer than any deadline here."""


def long(about: str) -> list[dict[str, str]]:
    """A prompt of 13 steps, which no other test has left in the cache."""
    return [{"role": "user", "content": about + " the sea" * 400}]


@pytest.fixture(scope="module")
def slow(model_135m: Path) -> Iterator[RunningServer]:
    """Steps of 20 ms, and prompts in parts."""
    with LLM(
        model_135m,
        backend="null",
        max_context=MAX_CONTEXT,
        kv_cache_bytes=KV_CACHE_BYTES,
        max_batch_tokens=64,
        draft="off",
    ) as llm:
        step = llm.backend.step

        def slow_step(batch: Any) -> Any:
            time.sleep(0.02)
            return step(batch)

        llm.backend.step = slow_step  # type: ignore[method-assign]
        with running(llm) as state:
            yield state


@pytest.fixture
def http(slow: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=slow.url, timeout=60) as client:
        yield client


DIALECTS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "chat": (
        "/v1/chat/completions",
        {"messages": HELLO, "max_tokens": MANY, "ignore_eos": True},
        lambda said: said["choices"][0]["finish_reason"] == "length",
    ),
    "completions": (
        "/v1/completions",
        {"prompt": "Hello", "max_tokens": MANY, "ignore_eos": True},
        lambda said: said["choices"][0]["finish_reason"] == "length",
    ),
    "responses": (
        "/v1/responses",
        {"input": "Hello"},
        lambda said: said["incomplete_details"] == {"reason": "max_output_tokens"},
    ),
    "anthropic": (
        "/v1/messages",
        {"model": "claude-x", "messages": HELLO, "max_tokens": MANY},
        lambda said: said["stop_reason"] == "max_tokens",
    ),
    "ollama": (
        "/api/chat",
        {"model": "test-model", "messages": HELLO, "stream": False},
        lambda said: said["done_reason"] == "length",
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_ends_at_its_deadline(slow: RunningServer, http: httpx.Client, dialect: str) -> None:
    path, body, is_cut = DIALECTS[dialect]
    start = time.monotonic()
    answer = http.post(path, json={**body, "deadline_ms": 500})
    assert answer.status_code == 200, answer.text
    assert is_cut(answer.json()), answer.text
    assert time.monotonic() - start < 15, "900 tokens take 18 s"
    slow.wait_idle()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": long("chat")}),
        ("/v1/messages", {"model": "claude-x", "messages": long("messages"), "max_tokens": 5}),
        ("/v1/responses", {"input": long("responses")[0]["content"]}),
        ("/api/chat", {"model": "test-model", "messages": long("ollama"), "stream": False}),
    ],
)
def test_no_time_for_the_prompt_is_an_error(
    slow: RunningServer, http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    answer = http.post(path, json=body, headers={"x-outpace-deadline-ms": "60"})
    assert answer.status_code == 408, answer.text
    assert "deadline" in answer.text
    assert answer.headers["x-should-retry"] == "false"
    slow.wait_idle()


def test_a_stream_says_that_there_was_no_time(slow: RunningServer, http: httpx.Client) -> None:
    body = {"messages": long("stream"), "stream": True, "deadline_ms": 60}
    text = http.post("/v1/chat/completions", json=body).text
    assert text.count("deadline_exceeded") == 1
    assert "[DONE]" not in text
    slow.wait_idle()


def test_a_message_of_a_websocket_has_its_own(slow: RunningServer) -> None:
    """It counts from the message's arrival, not from the connection's and not from the answer's beginning."""
    with connect(slow.url.replace("http", "ws", 1) + "/v1/responses", open_timeout=60) as socket:

        def say(about: str, num_tokens: int, deadline_ms: float | None) -> None:
            message = {"type": "response.create", "input": about, "max_output_tokens": num_tokens}
            socket.send(json.dumps({**message, "deadline_ms": deadline_ms}))

        def end() -> dict[str, Any]:
            while True:
                event = json.loads(socket.recv(timeout=60))
                if event["type"] in {"response.completed", "response.incomplete", "response.failed", "error"}:
                    return event

        time.sleep(1)
        start = time.monotonic()
        say("Hello", MANY, 700)
        cut = end()
        assert cut["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
        assert cut["response"]["usage"]["output_tokens"] > 1
        assert time.monotonic() - start < 15, "900 tokens take 18 s"
        say("Hello", 50, None)
        say("Hello", 50, 300)
        assert end()["type"] == "response.incomplete"
        late = end()
        assert late["type"] == "response.failed"
        assert late["response"]["error"]["code"] == "deadline_exceeded"
        say("Hello", 50, -1)
        assert end()["error"]["param"] == "deadline_ms"
    slow.wait_idle()


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1e12", "nan"])
def test_a_deadline_must_be_one(http: httpx.Client, value: str) -> None:
    body = {"messages": HELLO, "max_tokens": 1}
    answer = http.post("/v1/chat/completions", json=body, headers={"x-outpace-deadline-ms": value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-outpace-deadline-ms"
    assert http.post("/v1/chat/completions", json={**body, "deadline_ms": -1}).status_code == 400
    assert http.post("/v1/chat/completions", json={**body, "deadline_ms": 60_000}).status_code == 200
