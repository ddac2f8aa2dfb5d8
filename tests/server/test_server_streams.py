"""Many streams, clients that leave or do not read, steps that fail: exactly one end, and every block back."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import openai
import pytest
from serving import (
    RunningServer,
    check_outcomes,
    failing_at,
    open_raw,
    probe,
    run_random_clients,
    running,
    wait_until_busy,
)

from outpace.llm import LLM
from outpace.server.settings import ServerSettings

LONG = {"max_tokens": 900, "ignore_eos": True, "temperature": 1.0}


def events_of(text: str) -> list[Any]:
    """The stream's events, the last of them `"[DONE]"` or an error."""
    *events, end = text.split("\n\n")
    assert end == ""
    data = [event.removeprefix("data: ") for event in events]
    return [event if event == "[DONE]" else json.loads(event) for event in data]


def test_32_streams_with_random_disconnects(server: RunningServer, http: httpx.Client) -> None:
    before = probe(http)
    outcomes = [outcome for seed in range(3) for outcome in run_random_clients(server, 32, seed)]
    check_outcomes(outcomes)
    server.wait_idle()
    assert probe(http) == before


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_cancels_at_once(server: RunningServer, *, stream: bool) -> None:
    connection = open_raw(
        server, "/v1/completions", {"prompt": "a b c " * 100, "n": 4, "stream": stream, **LONG}
    )
    wait_until_busy(server)
    connection.close()
    start = time.monotonic()
    server.wait_idle(2)
    assert time.monotonic() - start < 1


def test_a_client_that_does_not_read_stalls_nobody(server: RunningServer, http: httpx.Client) -> None:
    body = {"prompt": ["x"] * 8, "n": 2, "stream": True, "logprobs": 20, **LONG, "max_tokens": 150}
    deaf = open_raw(server, "/v1/completions", body, receive_buffer=4096)
    wait_until_busy(server)
    for _ in range(3):
        start = time.monotonic()
        assert http.get("/health").status_code == 200
        assert time.monotonic() - start < 1
    assert http.post("/v1/completions", json={"prompt": "b", "max_tokens": 2}).status_code == 200
    server.wait_idle(60)  # the engine does not wait for the reader
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        received += deaf.recv(1 << 20)
    deaf.close()
    assert received.count(b'"finish_reason":"length"') == 16
    assert received.count(b"[DONE]") == 1


@pytest.fixture
def failing_backend(served_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The backend fails once the countdown in the list is over."""
    return failing_at(served_llm, monkeypatch)


def test_a_failed_step_ends_a_stream_with_an_error(
    server: RunningServer, http: httpx.Client, failing_backend: list[int]
) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, **LONG}
    failing_backend[0] = 6
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    *said, end = events_of(answer.text)
    assert said[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(event["choices"][0]["finish_reason"] is None for event in said)
    assert end == {
        "error": {"message": "the step broke", "type": "server_error", "param": None, "code": "engine_error"}
    }
    server.wait_idle(2)


def test_a_failed_step_is_a_500(
    server: RunningServer, client: openai.OpenAI, http: httpx.Client, failing_backend: list[int]
) -> None:
    failing_backend[0] = 3
    with pytest.raises(openai.InternalServerError, match="the step broke"):
        client.completions.create(model="test-model", prompt=["a", "b"], max_tokens=50)
    failing_backend[0] = 4
    with pytest.raises(openai.APIError, match="the step broke"):
        list(client.completions.create(model="test-model", prompt="a", max_tokens=50, stream=True))
    server.wait_idle(2)
    assert client.completions.create(model="test-model", prompt="a", max_tokens=2).choices[0].text is not None


def test_a_defect_is_a_500_without_its_details(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    for where in ("outpace.server.openai.completions.json_response", "outpace.llm.LLM.encode_prompt"):
        with monkeypatch.context() as patch:
            patch.setattr(where, broken)
            answer = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "secret" not in answer.text
        deadline = time.monotonic() + 5  # it is logged when the answer is out
        while "ZeroDivisionError: secret" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        caplog.clear()


def test_overload_is_refused_with_a_time_to_retry(server: RunningServer, http: httpx.Client) -> None:
    engine = server.llm.loop.engine
    limit = engine.config.max_num_seqs + 1024
    connections = []
    while len(connections) < limit // 128 + 1:
        body = {"prompt": "a", "n": 128, "stream": True, **LONG}
        connections.append(open_raw(server, "/v1/completions", body))
    deadline = time.monotonic() + 10
    while True:
        answer = http.post("/v1/completions", json={"prompt": "b", "n": 100, "max_tokens": 1})
        if answer.status_code == 429 or time.monotonic() > deadline:
            break
    assert answer.status_code == 429, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "overloaded"
    for connection in connections:
        connection.close()
    server.wait_idle()


def test_shutdown_ends_each_stream_with_an_error(served_llm: LLM) -> None:
    with running(served_llm, ServerSettings(port=0, shutdown_grace=0.1)) as server:
        body = {"prompt": "a", "n": 16, "stream": True, "logprobs": 5, **LONG}
        connection = open_raw(server, "/v1/completions", body)
        wait_until_busy(server)
        start = time.monotonic()
        server.stop()
        received = b""
        while chunk := connection.recv(1 << 20):
            received += chunk
        connection.close()
        assert server.ended.wait(5)
        assert time.monotonic() - start < 3
        assert b'"code": "shutting_down"' in received
        assert b"[DONE]" not in received
        server.wait_idle(2)


def test_shutdown_lets_a_short_request_finish(served_llm: LLM) -> None:
    with running(served_llm, ServerSettings(port=0, shutdown_grace=10)) as server:
        body = {"prompt": "a", "stream": True, **LONG, "max_tokens": 30}
        connection = open_raw(server, "/v1/completions", body)
        wait_until_busy(server)
        server.stop()
        received = b""
        while chunk := connection.recv(1 << 20):
            received += chunk
        connection.close()
        assert b"[DONE]" in received
        assert server.ended.wait(5)
