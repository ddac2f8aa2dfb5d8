"""The end of a server whose websockets are busy: answers are finished, or end as the dialect says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serving import running, slowed, wait_until_busy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from outpace.llm import LLM
from outpace.server.settings import ServerSettings

ENDS = {"response.completed", "response.incomplete", "response.failed", "error"}


@contextmanager
def process(model: Path, grace: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own, 10 ms a token, and its address."""
    command = [sys.executable, str(Path(__file__).with_name("slow_server.py")), str(model), str(grace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server, server.stdout.readline().strip()
        finally:
            server.kill()


def connected(url: str, **options: Any) -> Any:
    return connect(url.replace("http", "ws", 1) + "/v1/responses", open_timeout=60, **options)


def say(socket: ClientConnection, num_tokens: int, **fields: Any) -> None:
    request = {"type": "response.create", "input": "How is it?", "max_output_tokens": num_tokens, **fields}
    socket.send(json.dumps(request))


def hear_until_closed(socket: ClientConnection) -> tuple[list[dict[str, Any]], int | None]:
    """All events, and the code with which the connection was closed."""
    events: list[dict[str, Any]] = []
    try:
        while True:
            events.append(json.loads(socket.recv(timeout=30)))
    except ConnectionClosed as closed:
        return events, closed.rcvd and closed.rcvd.code


@pytest.mark.parametrize(("grace", "num_tokens"), [(20.0, 60), (0.3, 900)])
def test_a_running_answer_has_the_grace(model_135m: Path, grace: float, num_tokens: int) -> None:
    with process(model_135m, grace) as (server, url), connected(url) as socket:
        say(socket, num_tokens)
        first = json.loads(socket.recv(timeout=30))
        while first["type"] != "response.output_text.delta":
            first = json.loads(socket.recv(timeout=30))
        server.send_signal(signal.SIGTERM)
        start = time.monotonic()
        events, code = hear_until_closed(socket)
        ends = [event for event in events if event["type"] in ENDS]
        assert ends == events[-1:], "exactly one"
        if num_tokens == 60:
            assert ends[0]["response"]["usage"]["output_tokens"] == num_tokens, "it is whole"
        else:
            assert ends[0]["type"] == "response.failed"
            assert ends[0]["response"]["error"]["code"] == "shutting_down"
            assert grace * 0.9 < time.monotonic() - start
        assert code == 1012, "restart"
        assert server.communicate(timeout=20)[1] == ""
        assert server.returncode == 0
        assert time.monotonic() - start < 10


def test_what_waits_behind_it_is_told(served_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(served_llm, monkeypatch)
    settings = ServerSettings(port=0, shutdown_grace=20)
    with running(served_llm, settings) as state, connected(state.url) as socket, connected(state.url) as idle:
        for _ in range(3):
            say(socket, 50)
        wait_until_busy(state)
        state.stop()
        events, _ = hear_until_closed(socket)
        ends = [event for event in events if event["type"] in ENDS]
        assert [end["type"] for end in ends] == ["response.incomplete", "error", "error"]
        assert {end["error"]["code"] for end in ends[1:]} == {"shutting_down"}
        assert hear_until_closed(idle) == ([], 1012)


def test_a_client_that_does_not_read_holds_nobody_up(served_llm: LLM) -> None:
    """Its answer, which repeats the metadata, cannot be sent to its end."""
    with (
        running(served_llm, ServerSettings(port=0, shutdown_grace=0.2)) as state,
        connected(state.url, max_queue=1, compression=None, max_size=None) as socket,
    ):
        say(socket, 900, metadata={"much": "x" * 10_000_000})
        wait_until_busy(state)
        start = time.monotonic()
        state.stop()
        assert state.ended.wait(20)
        assert time.monotonic() - start < 6
        socket.close_socket()
