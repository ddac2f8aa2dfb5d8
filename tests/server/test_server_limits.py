"""Limits of keys and of time, with real sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import RunningServer, running, slowed

from outpace.errors import UsageError
from outpace.llm import LLM
from outpace.server.errors import APIError
from outpace.server.keys import KeyFile, add_key
from outpace.server.limits import ClientLimits, KeyLimits
from outpace.server.settings import ServerSettings

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refusal(limits: ClientLimits, scope: str) -> int:
    """The seconds that a refused request is told to wait."""
    with pytest.raises(APIError) as caught:
        limits.admit(scope)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    return int(caught.value.headers["retry-after"])


def test_requests_come_back_steadily() -> None:
    clock = Clock()
    limits = ClientLimits(
        KeyLimits(requests_per_minute=2), lambda: {"a": KeyLimits(), "b": KeyLimits()}, clock
    )
    for _ in range(2):
        limits.admit("a")
        limits.ended("a", 0)
    assert refusal(limits, "a") == 30
    limits.admit("b")  # has its own
    clock.now += 29
    assert refusal(limits, "a") == 1
    clock.now += 1.01
    limits.admit("a")
    clock.now += 3600
    assert limits.headers("a", anthropic=False)["x-ratelimit-remaining-requests"] == "2"


def test_tokens_are_taken_at_the_end() -> None:
    clock = Clock()
    limits = ClientLimits(KeyLimits(), lambda: {"a": KeyLimits(tokens_per_minute=600)}, clock)
    limits.admit("a")
    limits.admit("a")
    limits.ended("a", 500)
    limits.ended("a", 200)
    told = limits.headers("a", anthropic=False)
    assert told["x-ratelimit-limit-tokens"] == "600"
    assert told["x-ratelimit-remaining-tokens"] == "0"
    assert told["x-ratelimit-reset-tokens"] == "70.000s"
    assert refusal(limits, "a") == 11  # 101 tokens at 10 a second
    clock.now += 10.2
    limits.admit("a")


def test_requests_at_once() -> None:
    limits = ClientLimits(KeyLimits(max_concurrent=1), lambda: {"a": KeyLimits(max_concurrent=2)}, Clock())
    limits.admit("a")
    limits.admit("a")
    refusal(limits, "a")
    limits.ended("a", 5)
    limits.admit("a")
    assert limits.headers("a", anthropic=False) == {}


def test_where_no_key_is_asked_for_a_new_one_brings_nothing() -> None:
    limits = ClientLimits(KeyLimits(requests_per_minute=1), lambda: {}, Clock())
    limits.admit("one")
    refusal(limits, "another")


def test_limits_are_kept_with_the_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "plain")
    add_key(path, "slow", KeyLimits(requests_per_minute=3, max_concurrent=1))
    plain, slow = KeyFile(path)()
    assert plain.limits == KeyLimits()
    assert slow.limits.or_else(KeyLimits(9, 8, 7)) == KeyLimits(3, 8, 1)
    old = json.loads(path.read_text())
    del old["keys"][0]["limits"]
    path.write_text(json.dumps(old))
    assert KeyFile(path)()[0].limits == KeyLimits()
    old["keys"][1]["limits"]["max_concurrent"] = 0
    path.write_text(json.dumps(old))
    with pytest.raises(UsageError, match="no file of keys"):
        KeyFile(path)


@pytest.fixture
def limited(served_llm: LLM, tmp_path: Path) -> Iterator[tuple[RunningServer, dict[str, str]]]:
    path = tmp_path / "keys.json"
    keys = {
        "few": add_key(path, "few", KeyLimits(requests_per_minute=2, tokens_per_minute=100_000)),
        "one": add_key(path, "one", KeyLimits(max_concurrent=1)),
        "spent": add_key(path, "spent", KeyLimits(tokens_per_minute=1)),
    }
    settings = ServerSettings(port=0, shutdown_grace=0.2, api_keys=KeyFile(path))
    with running(served_llm, settings) as state:
        yield state, keys


def test_the_openai_client_is_told(limited: tuple[RunningServer, dict[str, str]]) -> None:
    server, keys = limited
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=keys["few"], max_retries=0) as client:
        left: list[str | None] = []
        for _ in range(2):
            raw = client.chat.completions.with_raw_response.create(model="test-model", **HELLO)
            left.append(raw.headers.get("x-ratelimit-remaining-requests"))
        assert left == ["1", "0"]
        with pytest.raises(openai.RateLimitError, match="2 requests per minute") as caught:
            client.chat.completions.create(model="test-model", **HELLO)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30


def test_the_anthropic_dialect_is_told(limited: tuple[RunningServer, dict[str, str]]) -> None:
    server, keys = limited
    headers = {"x-api-key": keys["spent"], "anthropic-version": "2023-06-01"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        first = client.post("/v1/messages", json={"model": "claude-x", **HELLO})
        assert first.status_code == 200
        assert first.headers["anthropic-ratelimit-tokens-limit"] == "1"
        assert first.headers["anthropic-ratelimit-tokens-reset"].endswith("Z")
        second = client.post("/v1/messages", json={"model": "claude-x", **HELLO})
    assert second.status_code == 429
    assert second.json()["error"]["type"] == "rate_limit_error"
    assert second.headers["anthropic-ratelimit-tokens-remaining"] == "0"


def test_one_request_at_once(
    limited: tuple[RunningServer, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, keys = limited
    slowed(server.llm, monkeypatch)
    headers = {"Authorization": f"Bearer {keys['one']}"}
    long = {**HELLO, "stream": True, "max_tokens": 900, "ignore_eos": True}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        with client.stream("POST", CHAT, json=long) as stream:
            lines = stream.iter_lines()  # kept: without it the connection would be closed
            assert next(lines).startswith("data: ")
            assert client.post(CHAT, json=HELLO).status_code == 429
        server.wait_idle()
        deadline = time.monotonic() + 30
        while (answer := client.post(CHAT, json=HELLO)).status_code == 429 and time.monotonic() < deadline:
            time.sleep(0.05)  # the server learns of the closed connection a moment later
        assert answer.status_code == 200


# --- time -------------------------------------------------------------------------------------------


def ends_within(connection: socket.socket, seconds: float) -> bool:
    """Whether the server closes the connection, without an answer."""
    connection.settimeout(seconds)
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def connect(server: RunningServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_a_head_that_does_not_come_is_not_waited_for(served_llm: LLM) -> None:
    settings = ServerSettings(port=0, shutdown_grace=0.2, head_timeout=0.3)
    with running(served_llm, settings) as state:
        with connect(state) as silent, connect(state) as slow:
            for letter in b"GET /health HT":
                try:
                    slow.send(bytes([letter]))
                except OSError:
                    break
                time.sleep(0.05)
            assert ends_within(slow, 30)
            assert ends_within(silent, 30)
        with connect(state) as second, httpx.Client(base_url=state.url, timeout=30) as client:
            second.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert second.recv(20).startswith(b"HTTP/1.1 200")
            while b"ok" not in second.recv(1000):
                pass
            time.sleep(0.6)  # resting between requests is no slow head
            second.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert second.recv(20).startswith(b"HTTP/1.1 200")
            while b"ok" not in second.recv(1000):
                pass
            second.send(b"GET /hea")
            assert ends_within(second, 30)
            body = {**HELLO, "max_tokens": 300, "ignore_eos": True}
            assert client.post(CHAT, json=body).status_code == 200  # nor is an answer that takes longer


def test_an_answer_that_takes_too_long_ends_once(served_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(served_llm, monkeypatch)
    body = {**HELLO, "max_tokens": 900, "ignore_eos": True}
    settings = ServerSettings(port=0, shutdown_grace=0.2, request_timeout=0.3)
    with running(served_llm, settings) as state, httpx.Client(base_url=state.url, timeout=60) as client:
        whole = client.post(CHAT, json=body)
        assert whole.status_code == 408
        assert whole.json()["error"]["code"] == "timeout"
        events = client.post(CHAT, json={**body, "stream": True}).text.split("\n\n")
        assert [event for event in events if "error" in event] == [events[-2]]
        assert "--request-timeout" in events[-2]
        state.wait_idle()
