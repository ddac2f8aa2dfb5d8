"""Reading what servers say, and the recorder before clients that say anything."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from outpace.bench.dialects import DIALECTS, WRONG_FORM, Said, dialect_of
from outpace.bench.record import Recorder, _Counter
from outpace.bench.trace import Exchange, read_trace

DEEP = "[" * 100_000
NAMES = [
    "choices",
    "delta",
    "message",
    "usage",
    "type",
    "response",
    "status",
    "done",
    "error",
    "content_block",
]
START = b"POST /v1/messages HTTP/1.1\r\nhost: a\r\n"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["message", "message_stop", "content_block_delta", "response.completed", "completed"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.sampled_from(list(DIALECTS.values())), st.one_of(st.text(), json_values.map(json.dumps)))
@example(DIALECTS["/v1/messages"], DEEP)
@example(DIALECTS["/v1/chat/completions"], "[DONE]")
@example(DIALECTS["/v1/chat/completions"], "9" * 5000)
def test_a_line_says_something_or_is_of_another_form(dialect: Any, text: str) -> None:
    for line in (text, f"data: {text}"):
        try:
            said = dialect.read_line(line)
        except WRONG_FORM:
            continue
        assert said is None or isinstance(said, Said)


@given(st.text())
def test_any_path_has_a_dialect_or_none(path: str) -> None:
    found = dialect_of(path)
    assert found is None or found.path in path


STREAM = (
    b'event: message_start\ndata: {"type": "message_start", "message": {"usage": {"input_tokens": 3, '
    b'"cache_read_input_tokens": 32}}}\n\n: a comment\ndata: {"type": "content_block_delta", "delta": '
    b'{"text": "h\xc3\xa9"}}\r\n\r\ndata: {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, '
    b'"usage": {"output_tokens": 7}}\n\ndata: {"type": "message_stop"}\n\n'
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.binary(max_size=20))
def test_a_stream_is_read_alike_however_it_is_cut(cuts: list[int], noise: bytes) -> None:
    whole, cut = (Exchange(start=0.0, path="/v1/messages", cut=True) for _ in range(2))
    ends = sorted({0, *cuts, len(STREAM)})
    for exchange, pieces in (
        (whole, [STREAM]),
        (cut, [STREAM[a:b] for a, b in pairwise(ends)] + [b"data: " + noise + b"\n"]),
    ):
        counter = _Counter(exchange, httpx.Headers({"content-type": "text/event-stream"}), 0.0)
        for piece in pieces:
            counter.take(piece)
        exchange.first_piece = exchange.first_piece and 1.0
    assert (whole.prompt_tokens, whole.cached_tokens, whole.completion_tokens) == (35, 32, 7)
    assert not whole.cut
    assert cut == whole


HELLO = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A recorder before a server that answers every request with an empty object: its port and its trace."""
    trace = tmp_path_factory.mktemp("record") / "trace.jsonl"
    ready = threading.Event()
    ports: list[int] = []
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        await reader.readexactly(int(line.partition(b":")[2]))
                writer.write(HELLO)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def noted(url: str) -> None:
        ports.append(int(url.rpartition(":")[2]))
        ready.set()

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        task = asyncio.create_task(Recorder(upstream, trace, say=print).run(noted))
        await ended.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()

    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(20)
    assert asked(ports[0], b"{}") == b"HTTP/1.1 200"
    while not trace.stat().st_size:
        time.sleep(0.01)
    yield ports[0], trace
    loops[0].call_soon_threadsafe(ended.set)
    thread.join(20)
    assert not thread.is_alive()


def sent(port: int, data: bytes) -> bytes:
    """All that comes back; the connection's end is ours."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while piece := connection.recv(65536):
                got += piece
        except ConnectionError:
            pass
        return got


def post(body: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%s" % (path, len(body), body)


def asked(port: int, body: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    """How the answer to a request begins, where the client waits for it."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(post(body, path))
        return connection.recv(65536)[:12]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=60).map(lambda head: START + head + b"\r\n\r\n"),
        st.binary(max_size=60).map(post),
    )
)
def test_a_client_may_say_anything(recorder: tuple[int, Path], data: bytes) -> None:
    port, _ = recorder
    sent(port, data)
    assert asked(port, b"{}") == b"HTTP/1.1 200"


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(json_values.map(lambda value: json.dumps(value).encode()), st.binary(max_size=50)))
@example(DEEP.encode())
@example(b"[" * 900 + b"]" * 900)
@example(b'{"a": NaN, "b": 1e999, "c": "\\ud800"}')
@example(b"9" * 5000)
def test_any_body_is_passed_on_and_its_trace_can_be_read(recorder: tuple[int, Path], body: bytes) -> None:
    port, trace = recorder
    before = trace.stat().st_size
    assert asked(port, body) == b"HTTP/1.1 200"
    deadline = time.monotonic() + 10
    while trace.stat().st_size == before:
        assert time.monotonic() < deadline, "nothing is written"
        time.sleep(0.001)
    assert read_trace(str(trace))


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"//elsewhere.example/v1/models", b"200"),  # a path, and no other server
        (b"/v1/%zz?key=[", b"200"),
        (b"http://elsewhere.example/v1/models", b"400"),
        (b"http://[::1", b"400"),
        (b"*", b"400"),
    ],
)
def test_every_request_goes_to_the_one_server(
    recorder: tuple[int, Path], target: bytes, status: bytes
) -> None:
    assert asked(recorder[0], b"{}", target) == b"HTTP/1.1 " + status
