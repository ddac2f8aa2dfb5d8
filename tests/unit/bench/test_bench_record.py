"""`bench record` as a program between real clients and a real server, and the traces that it leaves."""

from __future__ import annotations

import json
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from bench_servers import outpace_server

from outpace.bench.serve import Load, bench_serve
from outpace.bench.trace import SHIPPED, Exchange, earlier, read_trace, shipped_traces, to_line
from outpace.errors import UsageError

CHAT = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}


@pytest.fixture(scope="module")
def upstream(model_135m: Path) -> Iterator[str]:
    with outpace_server(model_135m, api_key="sk-secret") as url:
        yield url


@pytest.fixture(scope="module")
def roomy(model_135m: Path) -> Iterator[str]:
    """A server with room for an agent's prompts."""
    with outpace_server(model_135m, api_key="sk-secret", max_context=8192) as url:
        yield url


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


@contextmanager
def recording(
    upstream: str, trace: Path, *, full: bool = False
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The recorder and its address. `full`: nothing can be written to files, as on a full disk."""
    command = [sys.executable, "-m", "outpace.cli.main", "bench", "record", str(trace)]
    process = subprocess.Popen(
        [*command, "--to", upstream, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limited if full else None,  # noqa: PLW1509 - no threads run here yet
    )
    try:
        assert process.stderr is not None
        found = re.search(r" at (http://127\.0\.0\.1:\d+) into ", process.stderr.readline())
        assert found
        yield process, found[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


def lines(trace: Path, count: int) -> list[dict[str, Any]]:
    """The trace's lines, once there are so many."""
    end = time.monotonic() + 30
    while len(found := [line for line in trace.read_text().split("\n") if line.endswith("}")]) < count:
        assert time.monotonic() < end, found
        time.sleep(0.01)
    return [json.loads(line) for line in found]


def test_a_session_is_recorded_and_asked_again(upstream: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    with recording(upstream, trace) as (process, url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-secret", max_retries=0) as client:
            name = client.models.list().data[0].id
            plain = client.chat.completions.create(model=name, seed=1, **CHAT)  # pyright: ignore
            stream = client.chat.completions.create(model=name, seed=1, stream=True, **CHAT)  # pyright: ignore
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
            assert text == plain.choices[0].message.content
        with httpx.Client(base_url=url, headers={"x-api-key": "sk-secret"}) as http:
            direct = httpx.Client(base_url=upstream, headers={"x-api-key": "sk-secret"})
            body = {**CHAT, "model": name, "stream": True}
            message = http.post("/v1/messages?beta=true", json=body)
            assert message.headers["content-type"].startswith("text/event-stream")
            for refused in (
                http.post("/v1/messages", content=b"{"),
                direct.post("/v1/messages", content=b"{"),
            ):
                assert refused.status_code == 400
            for page in ("/v1/models", "/health", "/openapi.json"):
                passed, told = http.get(page), direct.get(page)
                assert (passed.status_code, passed.content) == (told.status_code, told.content)
            assert http.head("/").status_code == 200
            direct.close()
        found = lines(trace, 9)
        process.send_signal(signal.SIGINT)
        assert "9 requests recorded" in process.communicate(timeout=20)[1]
        assert process.returncode == 0
    assert "secret" not in trace.read_text()
    chat, streamed = (each for each in found if each["path"] == "/v1/chat/completions")
    assert chat["body"]["messages"] == CHAT["messages"]
    assert (chat["completion_tokens"], chat["status"], chat["cut"]) == (8, 200, False)
    assert not streamed["cut"]  # although this client leaves at the last event
    assert 0 < streamed["first_byte"] <= streamed["first_piece"] <= streamed["end"] - streamed["start"]
    message, broken = (each for each in found if each["path"] == "/v1/messages")
    assert (message["completion_tokens"], broken["status"], broken["body"]) == (8, 400, None)
    assert chat["end"] <= streamed["start"] <= streamed["end"] <= message["start"]

    replayed = read_trace(str(trace))
    again = bench_serve(
        f"{upstream}/v1", [], Load(num_requests=3, num_warmup=0), trace=replayed, api_key="sk-secret"
    )
    assert (again.num_whole, again.errors, again.completion_tokens) == (3, {}, 24)
    assert again.prompt_tokens == 3 * chat["prompt_tokens"]


def test_many_at_once_and_a_connection_for_many(upstream: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    key = {"authorization": "Bearer sk-secret"}
    with recording(upstream, trace) as (_, url), ThreadPoolExecutor(8) as threads:

        def ask(number: int) -> list[str]:
            with httpx.Client(base_url=url, headers=key, timeout=60) as http:
                body = {"prompt": f"number {number}", "max_tokens": 4, "seed": 1, "temperature": 0.5}
                answers = [http.post("/v1/completions", json=body).json() for _ in range(5)]
            return [answer["choices"][0]["text"] for answer in answers]

        for texts in threads.map(ask, range(8)):
            assert len(set(texts)) == 1
        assert len(lines(trace, 40)) == 40


def test_who_leaves_takes_the_request_along(upstream: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    body = json.dumps({"prompt": "a", "max_tokens": 900, "ignore_eos": True, "stream": True, "n": 4}).encode()
    with recording(upstream, trace) as (_, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-secret\r\n"
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            assert b"200" in client.recv(100)
        [left] = lines(trace, 1)
        assert (left["status"], left["cut"]) == (200, True)
        end = time.monotonic() + 30
        key = {"authorization": "Bearer sk-secret"}
        while "outpace:num_requests_running{" in (page := httpx.get(f"{upstream}/metrics", headers=key).text):
            if re.search(r"^outpace:num_requests_running\S* 0\.0$", page, re.MULTILINE):
                break
            assert time.monotonic() < end
    with pytest.raises(UsageError, match="no answered requests"):
        read_trace(str(trace))


def test_a_full_disk_holds_nobody_up(upstream: str, tmp_path: Path) -> None:
    with recording(upstream, tmp_path / "trace.jsonl", full=True) as (process, url):
        for _ in range(3):
            assert httpx.get(f"{url}/").status_code in {200, 401}
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=20)[1]
    assert told.count("the trace has a gap") == 1


def test_half_a_line_is_left_out(upstream: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    whole = to_line(Exchange(start=0, end=1, path="/v1/completions", body={"prompt": "a"}, status=200))
    trace.write_text(f"{whole}\n{whole[:40]}")
    with recording(upstream, trace) as (process, url):
        httpx.get(f"{url}/")
        end = time.monotonic() + 30
        while trace.read_text().count("\n") < 3:
            assert time.monotonic() < end
        process.send_signal(signal.SIGKILL)
    assert [exchange.path for exchange in read_trace(str(trace))] == ["/v1/completions", "/"]
    trace.write_text(f"{whole[:40]}\n[]\n5\n{{}}\n\n")
    with pytest.raises(UsageError, match="no answered requests"):
        read_trace(str(trace))


def test_headers_pass_as_they_are(tmp_path: Path) -> None:
    """What the client did not say is not said for it: an answer would be compressed that it cannot read."""
    body = b'{"prompt": "a"}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-own: 1\r\ncontent-length: %d\r\n\r\n" % len(body)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        recording(f"http://127.0.0.1:{server.getsockname()[1]}", tmp_path / "t") as (_, url),
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as client,
    ):
        client.sendall(head + body)
        behind, _ = server.accept()
        with behind:
            behind.settimeout(30)
            said = b""
            while not said.endswith(body):
                said += behind.recv(65536)
            behind.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            client.settimeout(30)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
    names = {line.split(b":")[0].lower() for line in said.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]}
    assert names == {b"host", b"x-own", b"content-length"}


def test_a_second_recording_goes_on(upstream: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    for count in (1, 2):
        with recording(upstream, trace) as (_, url):
            httpx.get(f"{url}/")
            found = lines(trace, count)
    starts = [(each["start"], each["end"]) for each in found if each]
    assert starts[0][1] <= starts[1][0]


def test_a_websocket_is_refused(upstream: str, tmp_path: Path) -> None:
    with recording(upstream, tmp_path / "t") as (_, url):
        asked = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
        assert httpx.get(f"{url}/v1/responses", headers=asked).status_code == 501


@pytest.mark.parametrize("name", shipped_traces())
def test_shipped_traces(roomy: str, name: str) -> None:
    """They name nobody's machine, and every request in them is answered when it is asked again."""
    text = (SHIPPED / f"{name}.jsonl").read_text()
    assert not re.search(r"/root|/tmp/|/work/|127\.0\.0\.1", text)
    assert len(text) < 100_000
    trace = read_trace(name)
    num_asked = sum(exchange.generates for exchange in trace)
    load = Load(num_requests=num_asked, num_warmup=0, max_tokens=2)
    report = bench_serve(f"{roomy}/v1", [], load, trace=trace, api_key="sk-secret")
    assert num_asked
    assert (report.num_whole, report.errors) == (num_asked, {})


def test_no_such_trace() -> None:
    with pytest.raises(UsageError, match="claude_code"):
        read_trace("nothing")


def test_nobody_behind_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        gone = f"http://127.0.0.1:{free.getsockname()[1]}"
    with recording(gone, tmp_path / "trace.jsonl") as (_, url):
        answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT)
        assert answer.status_code == 502
        assert gone in answer.text
        assert lines(tmp_path / "trace.jsonl", 1)[0]["status"] == 0


@pytest.mark.parametrize("to", ["localhost:8000", "ftp://x", "http://", "http://x/other"])
def test_no_address(to: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "outpace.cli.main", "bench", "record", str(tmp_path / "t"), "--to", to]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no address" in done.stderr


def test_what_may_depend_on_what() -> None:
    times = [(0.0, 1.0), (0.5, 2.0), (1.5, 3.0), (2.5, 4.0)]
    exchanges = [Exchange(start=start, end=end) for start, end in times]
    assert earlier(exchanges) == [[], [], [0], [0, 1]]


def test_bodies_for_another_server() -> None:
    body = {"model": "a", "max_completion_tokens": 50, "stream": True, "messages": []}
    chat = Exchange(start=0, path="/v1/chat/completions", body=body, completion_tokens=7)
    asked = chat.asked("b")
    assert (asked["model"], asked["max_tokens"], asked["stream_options"]) == ("b", 7, {"include_usage": True})
    assert "max_completion_tokens" not in asked
    assert chat.asked("b", 3)["max_tokens"] == 3
    responses = Exchange(start=0, path="/v1/responses", body={"input": "a"}, completion_tokens=7, status=200)
    assert responses.asked("b") == {"input": "a", "model": "b", "max_output_tokens": 7}
    assert responses.generates
    responses.body["previous_response_id"] = "resp_1"
    assert not responses.generates


def test_the_trace_is_the_user_s_alone(upstream: str, tmp_path: Path) -> None:
    with recording(upstream, tmp_path / "trace.jsonl"):
        assert (tmp_path / "trace.jsonl").stat().st_mode & 0o777 == 0o600
