"""Who may come in: keys, hosts, sizes; and what operators see."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import RunningServer, running

from outpace.errors import OutpaceError, PortInUseError, UsageError
from outpace.llm import LLM
from outpace.server.run import listen, url_of
from outpace.server.settings import ServerSettings, is_loopback

KEY = "sk-correct-horse"
PROMPT = {"prompt": "a", "max_tokens": 2}


@pytest.mark.parametrize("name", ["request_timeout", "shutdown_grace", "read_timeout"])
def test_what_is_no_number_is_no_setting(name: str) -> None:
    """It passes every limit, and then every answer takes longer."""
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: this is no number"):
        ServerSettings(**{name: math.nan})


def test_api_key(
    served_llm: LLM, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = ServerSettings(port=0, api_key=KEY)
    assert KEY not in repr(settings)
    with running(served_llm, settings) as server, httpx.Client(base_url=server.url) as http:
        for path in ("/health", "/"):
            assert http.get(path).status_code == 200
        for headers in (
            {},
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
            {"authorization": "Bearer"},
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": f"Bearer {KEY[:-1]}"},
            {"authorization": "Bearer sk-\xe9".encode("latin-1")},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
                answer = http.get(path, headers=headers)
                assert answer.status_code == 401, (path, headers)
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
        assert http.get("/v1/models", headers={"authorization": f"bearer {KEY}"}).status_code == 200
        assert http.get("/v1/models", headers={"x-api-key": KEY}).status_code == 200
        both = {"authorization": "Bearer another", "x-api-key": KEY}
        assert http.get("/v1/models", headers=both).status_code == 200
        assert http.get("/v1/models", headers={"x-api-key": f"{KEY}x"}).status_code == 401
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            assert client.completions.create(model="test-model", **PROMPT).choices
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
    said = capfd.readouterr()
    assert KEY not in caplog.text + said.out + said.err


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:1234"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:8000"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "localhost@evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 200),
        ({"origin": "vscode-webview://abc"}, 200),
    ],
)
def test_web_pages_from_elsewhere_are_refused(
    http: httpx.Client, headers: dict[str, str], status: int
) -> None:
    answer = http.post("/v1/completions", json=PROMPT, headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


def test_other_hosts_are_fine_beyond_loopback(served_llm: LLM) -> None:
    settings = ServerSettings(host="0.0.0.0", port=0, allow_open=True)
    with running(served_llm, settings) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{server.url}/health", headers={"host": "my.lan"}).status_code == 200


def test_no_cors(http: httpx.Client) -> None:
    preflight = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    answer = http.options("/v1/completions", headers=preflight)
    assert answer.status_code == 405
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_long_bodies_are_refused(served_llm: LLM) -> None:
    with running(served_llm, ServerSettings(port=0, max_body_bytes=10_000)) as server:
        for size, status in ((9_000, 400), (10_100, 413), (1_000_000, 413)):
            with httpx.Client(base_url=server.url) as http:
                answer = http.post("/v1/completions", json={"prompt": "a " * (size // 2)})
                assert answer.status_code == status, size
                code = "context_length_exceeded" if status == 400 else "body_too_large"
                assert answer.json()["error"]["code"] == code
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_body_that_never_comes_times_out(served_llm: LLM) -> None:
    with running(served_llm, ServerSettings(port=0, read_timeout=0.1)) as server:
        address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        with socket.create_connection(address) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
            )
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_health(http: httpx.Client) -> None:
    expected = {"status": "ok", "model": "test-model", "loaded": ["test-model"]}
    assert http.get("/health").json() == expected


def test_the_root_answers_probes(http: httpx.Client) -> None:
    assert http.get("/").json()["server"] == "outpace"
    probe = http.head("/")
    assert (probe.status_code, probe.content) == (200, b"")


def test_every_answer_has_an_id(http: httpx.Client) -> None:
    names = [
        http.get("/v1/models").headers["x-request-id"],
        http.post("/v1/completions", json=PROMPT).headers["x-request-id"],
        http.get("/v1/nothing").headers["x-request-id"],
        http.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).headers["request-id"],
        http.post("/v1/messages", json={}).headers["request-id"],
    ]
    assert len(set(names)) == len(names)
    assert all(name.startswith("req_") for name in names)


def test_metrics(http: httpx.Client) -> None:
    def value(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    path = "/v1/completions"
    before = {
        status: value("outpace:http_requests_total", path=path, status=status) for status in ("200", "400")
    }
    tokens = value("outpace:generation_tokens_total")
    first_tokens = value("outpace:time_to_first_token_seconds_count")
    http.post(path, json={"prompt": "metrics", "max_tokens": 5, "ignore_eos": True})
    http.post(path, json={})
    http.get("/some/address/that/nobody/knows")
    assert value("outpace:http_requests_total", path=path, status="200") == before["200"] + 1
    assert value("outpace:http_requests_total", path=path, status="400") == before["400"] + 1
    assert value("outpace:http_requests_total", path="unmatched", status="404") >= 1
    assert value("outpace:http_requests_total", path="/some/address/that/nobody/knows") == 0
    assert value("outpace:generation_tokens_total") == tokens + 5
    assert value("outpace:time_to_first_token_seconds_count") == first_tokens + 1
    assert value("outpace:http_requests_in_progress") == 1


def test_openapi_page_describes_the_bodies(http: httpx.Client) -> None:
    page = http.get("/openapi.json").json()
    body = page["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    assert "messages" in body["content"]["application/json"]["schema"]["properties"]
    assert "$ref" not in str(body)
    assert http.get("/docs").status_code == 404


def test_events_are_not_held_back() -> None:
    with listen(ServerSettings(port=0)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_listen_errors() -> None:
    with listen(ServerSettings(port=0)) as taken:
        port = taken.getsockname()[1]
        assert url_of(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(PortInUseError, match=f"{port}.*--port") as in_use:
            listen(ServerSettings(port=port))
        assert in_use.value.exit_code == 1
    with pytest.raises(UsageError, match="no such host"):
        listen(ServerSettings(host="no such host!", port=0, allow_open=True))
    with pytest.raises(OutpaceError, match=r"192\.0\.2\.1"):
        listen(ServerSettings(host="192.0.2.1", port=0, allow_open=True))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("LOCALHOST", True),
        ("a.localhost", True),
        ("localhost.", True),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_long_prompt_is_encoded_beside_the_event_loop(server: RunningServer, http: httpx.Client) -> None:
    """While a prompt of a megabyte is encoded, others are answered."""
    statuses: list[int] = []

    def send() -> None:
        body = {"prompt": "word and word " * 70_000}
        statuses.append(httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code)

    thread = threading.Thread(target=send)
    begin = time.process_time()  # which a busy machine does not stretch
    thread.start()
    slowest = 0.0
    while thread.is_alive():
        start = time.process_time()
        http.get("/health")
        slowest = max(slowest, time.process_time() - start)
    thread.join()
    assert statuses == [400]
    # A loop that encodes, or waits for the interpreter's lock, stands still for nearly all of it.
    assert slowest < 0.8 * (time.process_time() - begin)
