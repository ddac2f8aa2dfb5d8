"""Anthropic's events as they go over the wire: their order, pings, errors, and exactly one end."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from serving import RunningServer, failing_at, open_raw, running, wait_until_busy

from outpace.llm import LLM
from outpace.server.anthropic.events import SIGNATURE, MessageEvents
from outpace.server.settings import ServerSettings
from outpace.types import StepBatch, StepOutput

MESSAGES = "/v1/messages"
ASKED: dict[str, Any] = {
    "model": "claude-x",
    "max_tokens": 9,
    "stream": True,
    "messages": [{"role": "user", "content": "Hi"}],
}
LONG: dict[str, Any] = {**ASKED, "max_tokens": 900}


def events_of(text: str) -> list[dict[str, Any]]:
    """The stream's events; the name of each is the type in its data."""
    *events, end = text.split("\n\n")
    assert end == ""
    read: list[dict[str, Any]] = []
    for event in events:
        name, data = event.split("\n")
        read.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {read[-1]['type']}"
    return read


def test_the_order_of_events(http: httpx.Client) -> None:
    answer = http.post(MESSAGES, json=ASKED)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["request-id"].startswith("req_")
    events = events_of(answer.text)
    kinds = [event["type"] for event in events]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, _, begin, *said, stop, delta, _ = events
    assert sorted(start["message"]) == sorted(
        ["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"]
    )
    assert start["message"]["content"] == []
    assert start["message"]["stop_reason"] is None
    assert begin == {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    assert all(sorted(event) == ["delta", "index", "type"] for event in said)
    assert all(event["delta"]["type"] == "text_delta" and event["delta"]["text"] for event in said)
    assert stop == {"type": "content_block_stop", "index": 0}
    assert delta["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    usage = delta["usage"]
    assert usage["output_tokens"] == 9
    total = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
    assert total == start["message"]["usage"]["input_tokens"]


def test_blocks_of_every_kind() -> None:
    write = MessageEvents()
    text = write.thinking("Hm") + write.thinking("\n…") + write.text("") + write.text('Say "é"')
    text += write.tool_use("toolu_1", "f") + write.tool_input('{"a":') + write.tool_input(" 1}")
    text += write.tool_use("toolu_2", "g") + write.tool_input("") + write.text("Done")
    text += write.end("tool_use", None, {"output_tokens": 3})
    events = events_of(text)
    blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert blocks == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
        {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
        {"type": "text", "text": ""},
    ]
    said = [(e["index"], e["delta"]) for e in events if e["type"] == "content_block_delta"]
    assert said == [
        (0, {"type": "thinking_delta", "thinking": "Hm"}),
        (0, {"type": "thinking_delta", "thinking": "\n…"}),
        (0, {"type": "signature_delta", "signature": SIGNATURE}),
        (1, {"type": "text_delta", "text": 'Say "é"'}),
        (2, {"type": "input_json_delta", "partial_json": '{"a":'}),
        (2, {"type": "input_json_delta", "partial_json": " 1}"}),
        (4, {"type": "text_delta", "text": "Done"}),
    ]
    order = [
        (e["type"], e["index"]) for e in events if e["type"].endswith(("start", "stop")) and "index" in e
    ]
    assert order == [(f"content_block_{what}", index) for index in range(5) for what in ("start", "stop")]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]


def test_an_answer_without_text_has_no_block(http: httpx.Client, server: RunningServer) -> None:
    whole = http.post(MESSAGES, json={**ASKED, "stream": False, "max_tokens": 40, "temperature": 0}).json()
    first = whole["content"][0]["text"][0]
    asked = {**ASKED, "stop_sequences": [first], "temperature": 0}
    events = events_of(http.post(MESSAGES, json=asked).text)
    assert [event["type"] for event in events] == ["message_start", "ping", "message_delta", "message_stop"]
    assert events[2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": first}
    assert http.post(MESSAGES, json={**asked, "stream": False}).json()["content"] == []


def test_pings_until_the_first_token(served_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = served_llm.loop.engine
    step = engine.backend.step

    class Slow:
        waited = False

        def __getattr__(self, name: str) -> Any:
            return getattr(served_llm.backend, name)

        def step(self, batch: StepBatch) -> StepOutput:
            if not self.waited:  # the prompt's step; later ones may have several rows too, of drafts
                self.waited = True
                time.sleep(0.6)
            return step(batch)

    monkeypatch.setattr(engine, "backend", Slow())
    with running(served_llm, ServerSettings(port=0, heartbeat=0.1)) as server:
        kinds = [event["type"] for event in events_of(httpx.post(server.url + MESSAGES, json=ASKED).text)]
    first = kinds.index("content_block_start")
    assert kinds[:1] == ["message_start"]
    assert set(kinds[1:first]) == {"ping"}
    assert first - 1 >= 3
    assert "ping" not in kinds[first:]
    assert kinds[-1] == "message_stop"


def test_a_failed_step_ends_a_stream_with_an_error(
    served_llm: LLM, server: RunningServer, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    countdown = failing_at(served_llm, monkeypatch)
    countdown[0] = 6
    answer = http.post(MESSAGES, json=LONG)
    assert answer.status_code == 200
    *said, end = events_of(answer.text)
    assert {event["type"] for event in said} <= {
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
    }
    assert end == {
        "type": "error",
        "error": {"type": "api_error", "message": "the step broke"},
        "request_id": answer.headers["request-id"],
    }
    countdown[0] = 3
    answer = http.post(MESSAGES, json={**LONG, "stream": False})
    assert answer.status_code == 500
    assert answer.json()["error"] == {"type": "api_error", "message": "the step broke"}
    server.wait_idle(2)


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_cancels_at_once(server: RunningServer, *, stream: bool) -> None:
    connection = open_raw(server, MESSAGES, {**LONG, "stream": stream})
    wait_until_busy(server)
    connection.close()
    start = time.monotonic()
    server.wait_idle(2)
    assert time.monotonic() - start < 1


def test_a_disconnect_before_the_first_token(served_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing but heartbeats is sent."""
    engine = served_llm.loop.engine
    step = engine.backend.step
    steps: list[int] = []

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(served_llm.backend, name)

        def step(self, batch: StepBatch) -> StepOutput:
            steps.append(batch.num_rows)
            time.sleep(0.3)
            return step(batch)

    monkeypatch.setattr(engine, "backend", Slow())
    with running(served_llm, ServerSettings(port=0, heartbeat=0.02)) as server:
        connection = open_raw(server, MESSAGES, LONG)
        wait_until_busy(server)
        connection.close()
        server.wait_idle(2)
    assert len(steps) <= 2


def test_shutdown_ends_a_stream_with_an_error(served_llm: LLM) -> None:
    with running(served_llm, ServerSettings(port=0, shutdown_grace=0.05)) as server:
        connections = [open_raw(server, MESSAGES, LONG) for _ in range(16)]
        wait_until_busy(server)
        server.stop()
        received = b""
        while chunk := connections[0].recv(1 << 20):
            received += chunk
        for connection in connections:
            connection.close()
        ends = received.count(b"event: error\n") + received.count(b"event: message_stop\n")
        assert ends == 1
        server.wait_idle(2)


def test_overload_is_529(server: RunningServer, http: httpx.Client) -> None:
    limit = server.llm.loop.engine.config.max_num_seqs + 1024
    body = {"prompt": "a", "stream": True, "max_tokens": 900, "ignore_eos": True}
    choices = [128] * (limit // 128) + [limit % 128]
    connections = [open_raw(server, "/v1/completions", {**body, "n": n}) for n in choices if n]
    for connection in connections:
        assert connection.recv(12) == b"HTTP/1.1 200"
    answer = http.post(MESSAGES, json=ASKED)
    for connection in connections:
        connection.close()
    assert answer.status_code == 529, answer.text
    assert answer.json()["error"]["type"] == "overloaded_error"
    assert int(answer.headers["retry-after"]) >= 1
    server.wait_idle()
