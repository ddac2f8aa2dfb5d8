"""`/v1/responses` as a websocket, with a real client of the protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import saying
from serving import RunningServer, failing_at, running, slowed, wait_until_busy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from outpace.llm import LLM
from outpace.server.settings import ServerSettings

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
ENDS = {"response.completed", "response.incomplete", "response.failed", "error"}


@contextmanager
def connected(server: RunningServer, **headers: str) -> Iterator[ClientConnection]:
    url = server.url.replace("http", "ws", 1) + "/v1/responses"
    with connect(url, additional_headers=headers, open_timeout=60, max_size=1 << 24) as socket:
        yield socket


def say(socket: ClientConnection, **fields: Any) -> None:
    request = {"type": "response.create", "input": "How is it?", "max_output_tokens": 40, **fields}
    socket.send(json.dumps(request))


def hear(socket: ClientConnection) -> list[dict[str, Any]]:
    """The events of one answer."""
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] not in ENDS:
        events.append(json.loads(socket.recv(timeout=60)))
    return events


def ask(socket: ClientConnection, **fields: Any) -> dict[str, Any]:
    """The response at the end of an answer that is sound."""
    say(socket, **fields)
    events = hear(socket)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] in {"response.completed", "response.incomplete"}
    return events[-1]["response"]


def refused(socket: ClientConnection, **fields: Any) -> tuple[int, str, str | None]:
    say(socket, **fields)
    [event] = hear(socket)
    assert event["type"] == "error"
    return event["status"], event["error"]["code"], event["error"]["param"]


def text_of(response: dict[str, Any]) -> str:
    return "".join(item["content"][0]["text"] for item in response["output"] if item["type"] == "message")


def test_turns_go_on_from_each_other(server: RunningServer, served_llm: LLM) -> None:
    """A call, its result by `previous_response_id` alone, nothing stored beyond the connection."""
    with connected(server) as socket:
        with saying(served_llm, CALL):
            first = ask(socket, tools=[WEATHER], store=False)
        [call] = first["output"]
        assert (call["type"], json.loads(call["arguments"])) == ("function_call", {"city": "Oslo"})
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Rain."}
        with saying(served_llm, "It rains."):
            second = ask(
                socket, tools=[WEATHER], store=False, input=[result], previous_response_id=first["id"]
            )
    assert text_of(second) == "It rains."
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    with connected(server) as other:
        status, code, param = refused(other, previous_response_id=first["id"])
    assert (status, code, param) == (400, "previous_response_not_found", "previous_response_id")


def test_what_is_stored_is_found_elsewhere(server: RunningServer) -> None:
    with connected(server) as socket:
        first = ask(socket, max_output_tokens=4)
    with connected(server) as other:
        second = ask(other, input="And now?", max_output_tokens=4, previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]


def test_the_tokens_are_those_of_a_stream(server: RunningServer, client: Any) -> None:
    fields: dict[str, Any] = {"temperature": 0, "max_output_tokens": 12}
    with connected(server) as socket:
        said = text_of(ask(socket, **fields))
    assert said == client.responses.create(model="test-model", input="How is it?", **fields).output_text


def test_a_prompt_is_read_ahead(server: RunningServer) -> None:
    with connected(server) as socket:
        warm = ask(socket, instructions="Be brief. " * 60, generate=False)
        assert warm["output"] == []
        last = ask(socket, instructions="Be brief. " * 60, max_output_tokens=2, input="So?")
    assert last["usage"]["input_tokens_details"]["cached_tokens"] >= 64


def test_requests_wait_for_each_other(server: RunningServer) -> None:
    with connected(server) as socket:
        for count in (1, 2, 3):
            say(socket, max_output_tokens=count)
        assert [hear(socket)[-1]["response"]["usage"]["output_tokens"] for _ in range(3)] == [1, 2, 3]


def test_what_is_wrong_is_told_and_the_connection_stays(server: RunningServer) -> None:
    with connected(server) as socket:
        socket.send("{")
        assert hear(socket)[0]["error"]["code"] == "invalid_json"
        socket.send(b"\xff\xfe")
        assert hear(socket)[0]["error"]["code"] == "invalid_utf8"
        socket.send(json.dumps({"type": "response.cancel"}))
        assert hear(socket)[0]["error"]["param"] in {"type", "input"}
        assert refused(socket, model="other") == (404, "model_not_found", "model")
        assert refused(socket, temperature=-1) == (400, "invalid_value", "temperature")
        assert refused(socket, input=[{"role": "user", "content": 5}])[0] == 400
        assert ask(socket, max_output_tokens=2)["status"] == "incomplete"


def test_a_failing_step_ends_the_answer_and_not_the_connection(
    server: RunningServer, served_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(server) as socket:
        failing_at(served_llm, monkeypatch)[0] = 3
        say(socket)
        assert hear(socket)[-1]["response"]["error"]["message"] == "the step broke"
        assert ask(socket, max_output_tokens=2)["status"] == "incomplete"


def test_a_client_that_leaves_is_cancelled(
    server: RunningServer, served_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(served_llm, monkeypatch)
    with connected(server) as socket:
        say(socket, max_output_tokens=900)
        wait_until_busy(server)
    server.wait_idle(10)


def test_a_client_that_asks_too_much_is_sent_away(
    server: RunningServer, served_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(served_llm, monkeypatch)

    def ask_on(socket: ClientConnection) -> None:
        for _ in range(20):
            say(socket, max_output_tokens=900)
        while True:
            socket.recv(timeout=60)

    with connected(server) as socket, pytest.raises(ConnectionClosed, match="too many requests"):
        ask_on(socket)
    server.wait_idle(10)


def test_doors_are_before_sockets_too(served_llm: LLM) -> None:
    with running(served_llm, ServerSettings(port=0, shutdown_grace=0.2, api_key="secret")) as state:
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "Bearer secret", "Origin": "https://elsewhere.example"}, 403),
        ):
            with pytest.raises(InvalidStatus) as caught, connected(state, **headers):
                pass
            assert caught.value.response.status_code == status
        with connected(state, Authorization="Bearer secret") as socket:
            assert ask(socket, max_output_tokens=2)["status"] == "incomplete"


def test_a_message_over_the_limit_ends_the_connection(served_llm: LLM) -> None:
    settings = ServerSettings(port=0, shutdown_grace=0.2, max_body_bytes=4096)
    with running(served_llm, settings) as state, connected(state) as socket:
        say(socket, input="x" * 5000)
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv(timeout=60)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009


def test_a_shutdown_closes_idle_connections(served_llm: LLM) -> None:
    with running(served_llm) as state, connected(state) as socket:
        assert ask(socket, max_output_tokens=2)["status"] == "incomplete"
        state.stop()
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=60)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("model", "instructions", "tools", "tool_choice", "text", "store", "metadata", "generate")
requests = st.fixed_dictionaries(
    {"type": st.just("response.create"), "input": st.text(max_size=8) | anything},
    optional={
        **dict.fromkeys(FIELDS, anything),
        "previous_response_id": st.text(max_size=8),
        "temperature": st.floats() | anything,
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=st.lists(requests | anything | st.binary(max_size=30), max_size=4))
def test_no_message_breaks_the_connection(
    server: RunningServer, messages: list[dict[str, Any] | bytes | None]
) -> None:
    with connected(server) as socket:
        for message in messages:
            short = {**message, "max_output_tokens": 2} if isinstance(message, dict) else message
            socket.send(short if isinstance(short, bytes) else json.dumps(short))
            end = hear(socket)[-1]
            status = end.get("status", 400) if end["type"] == "error" else 400
            assert status in {400, 404}, "one end, and no error of ours"
            assert end["type"] != "response.failed"
        assert ask(socket, max_output_tokens=2)["object"] == "response"
