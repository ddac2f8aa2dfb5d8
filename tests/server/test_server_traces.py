"""Spans as OpenTelemetry's SDK and its collectors see them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from serving import RunningServer, failing_at, open_raw, running, wait_until_busy
from test_serve_command import serving
from websockets.sync.client import connect

from outpace.llm import LLM
from outpace.server.tracing import Tracing, configured_tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "zanzibar"


class Spans:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider)

    def take(self, count: int) -> Sequence[ReadableSpan]:
        """Exactly so many spans; they end a moment after their answers."""
        deadline = time.monotonic() + 20
        while len(self.exporter.get_finished_spans()) < count:
            assert time.monotonic() < deadline, "a span is missing"
            time.sleep(0.005)
        spans = self.exporter.get_finished_spans()
        assert len(spans) == count
        self.exporter.clear()
        return spans


@pytest.fixture(scope="module")
def spans() -> Spans:
    return Spans()


@pytest.fixture(scope="module")
def traced(served_llm: LLM, spans: Spans) -> Iterator[RunningServer]:
    with running(served_llm, tracing=spans.tracing) as state:
        yield state


@pytest.fixture
def traced_http(traced: RunningServer, spans: Spans) -> Iterator[httpx.Client]:
    spans.exporter.clear()
    with httpx.Client(base_url=traced.url, timeout=30) as client:
        yield client


def chat(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Say {SECRET}."}]
    return {"model": "test-model", "messages": messages, "max_tokens": 7, "ignore_eos": True, **fields}


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_has_what_the_conventions_ask_for(
    traced_http: httpx.Client, spans: Spans, stream: bool
) -> None:
    before = time.time_ns()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    answer = traced_http.post("/v1/chat/completions", json=chat(stream=stream), headers=headers)
    usage = None if stream else answer.json()["usage"]
    (span,) = spans.take(1)
    assert (span.name, span.kind) == ("chat test-model", SpanKind.SERVER)
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    found = attributes(span)
    first = found.pop("gen_ai.response.time_to_first_chunk")
    assert span.start_time is not None
    assert span.end_time is not None
    assert before <= span.start_time < span.end_time <= time.time_ns()
    assert 0 < first <= (span.end_time - span.start_time) / 1e9
    tokens = found.pop("gen_ai.usage.input_tokens")
    assert tokens > 5
    assert usage is None or usage["prompt_tokens"] == tokens
    assert found.pop("gen_ai.usage.cache_read.input_tokens") <= tokens
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "outpace",
        "gen_ai.request.model": "test-model",
        "gen_ai.response.model": "test-model",
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.response.finish_reasons": ("length",),
        "outpace.request.id": answer.headers["x-request-id"],
    }
    assert span.status.status_code is StatusCode.UNSET


def test_choices_of_several_prompts(traced_http: httpx.Client, spans: Spans) -> None:
    body = {"prompt": ["One", "Two"], "n": 2, "max_tokens": 3, "ignore_eos": True}
    traced_http.post("/v1/completions", json=body)
    (span,) = spans.take(1)
    found = attributes(span)
    assert span.name == "text_completion test-model"
    assert span.parent is None
    assert found["gen_ai.request.choice.count"] == 2
    assert found["gen_ai.usage.output_tokens"] == 12
    assert found["gen_ai.response.finish_reasons"] == ("length",) * 4


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/messages", chat(model="claude-opus-4"), "chat claude-opus-4"),
        (
            "/v1/responses",
            {"model": "test-model", "input": SECRET, "max_output_tokens": 4},
            "chat test-model",
        ),
        ("/api/chat", chat(options={"num_predict": 4}), "chat test-model"),
        (
            "/api/generate",
            {"model": "test-model", "prompt": SECRET, "options": {"num_predict": 4}},
            "text_completion test-model",
        ),
        ("/v1/embeddings", {"model": "test-model", "input": SECRET}, "embeddings test-model"),
        ("/api/embed", {"model": "test-model", "input": SECRET}, "embeddings test-model"),
    ],
)
def test_every_dialect(
    traced_http: httpx.Client, spans: Spans, path: str, body: dict[str, Any], name: str
) -> None:
    assert traced_http.post(path, json=body).status_code == 200
    (span,) = spans.take(1)
    assert span.name == name
    assert attributes(span)["gen_ai.response.model"] == "test-model"
    assert SECRET not in span.to_json(), "what was asked and answered is nobody's business"


def test_what_is_refused_fails_or_is_given_up(
    traced_http: httpx.Client, traced: RunningServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(span: ReadableSpan) -> str:
        assert span.status.status_code is StatusCode.ERROR
        assert SECRET not in span.to_json()
        return attributes(span)["error.type"]

    long = chat(messages=[{"role": "user", "content": f"{SECRET} " * 600}])
    assert traced_http.post("/v1/chat/completions", json=long).status_code == 400
    assert error(*spans.take(1)) == "ContextLengthError"

    failing_at(traced.llm, monkeypatch)[0] = 3
    assert traced_http.post("/v1/chat/completions", json=chat()).status_code == 500
    (span,) = spans.take(1)
    assert error(span) == "engine_error"
    assert attributes(span)["gen_ai.usage.output_tokens"] == 2
    monkeypatch.undo()

    for stream in (False, True):
        body = chat(max_tokens=900, n=8, stream=stream)
        with open_raw(traced, "/v1/chat/completions", body):
            wait_until_busy(traced)
        assert error(*spans.take(1)) == "client_disconnected"
    traced.wait_idle()


def test_a_websocket_has_a_span_for_each_of_its_turns(traced: RunningServer, spans: Spans) -> None:
    spans.exporter.clear()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    with connect(f"ws{traced.url.removeprefix('http')}/v1/responses", additional_headers=headers) as socket:
        for number in range(2):
            start = time.time_ns()
            message = {"type": "response.create", "input": f"Turn {number}", "max_output_tokens": 4}
            socket.send(json.dumps(message))
            while json.loads(socket.recv(30))["type"] not in {"response.completed", "response.incomplete"}:
                pass
            (span,) = spans.take(1)
            assert span.start_time is not None
            assert span.start_time >= start, "a turn begins with its message"
            assert span.parent is not None
            assert f"{span.parent.span_id:016x}" == PARENT


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_parent_that_is_none(traced_http: httpx.Client, spans: Spans, header: str) -> None:
    headers = {"traceparent": header}
    assert traced_http.post("/v1/chat/completions", json=chat(), headers=headers).status_code == 200
    (span,) = spans.take(1)
    assert span.parent is None


# --- configuration ------------------------------------------------------------------------------


class Collector(ThreadingHTTPServer):
    """Takes what OTLP exporters post."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posts: list[tuple[str, bytes]] = []


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        self.server.posts.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_the_standard_variables_send_spans_to_a_collector(model_135m: Path) -> None:
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{collector.server_address[1]}"
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        with serving(model_135m, **environment) as (process, url):
            body = chat(model=model_135m.stem)
            assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20).status_code == 200
            process.terminate()
            assert process.wait(30) == 0, "what is left is sent before the end"
        collector.shutdown()
    ((path, content),) = collector.posts
    assert path == "/v1/traces"
    (sent,) = ExportTraceServiceRequest.FromString(content).resource_spans
    resource = {each.key: each.value.string_value for each in sent.resource.attributes}
    assert resource["service.name"] == "outpace"
    assert [span.name for span in sent.scope_spans[0].spans] == [f"chat {model_135m.stem}"]
    assert SECRET.encode() not in content


def test_no_sdk_is_imported_where_traces_are_off() -> None:
    script = (
        "import sys, outpace.server.run as run; assert run.configured_tracing() is None; print(*sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
    )
    assert "outpace.server.tracing" in found.stdout.split()
    assert not {"opentelemetry.sdk", "opentelemetry.exporter", "google.protobuf"} & set(found.stdout.split())


@pytest.mark.parametrize(
    ("variables", "warning"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin is not supported"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc is not supported; http/protobuf is",
        ),
    ],
)
def test_off_and_unsupported(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    warning: str | None,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        assert configured_tracing() is None
    assert (warning or "") in caplog.text
    assert bool(caplog.records) == (warning is not None)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with caplog.at_level(logging.WARNING):
        assert configured_tracing() is None
    assert "pip install 'outpace[otel]'" in caplog.text


def test_the_console_exporter() -> None:
    script = """
from outpace.server.tracing import configured_tracing
from outpace.types import SamplingParams
tracing = configured_tracing()
tracing.begin("m", SamplingParams()).end()
tracing.close()
"""
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "mine"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    span = json.loads(done.stdout)
    assert span["name"] == "chat m"
    assert span["resource"]["attributes"]["service.name"] == "mine"
