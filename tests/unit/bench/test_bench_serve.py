"""`bench serve` against real servers: ours, one that tells no usage, one that breaks off, none at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from bench_servers import http_server, outpace_server

from outpace.bench.answers import AnswerTiming
from outpace.bench.report import as_json
from outpace.bench.serve import Limits, Load, bench_serve, percentile
from outpace.bench.workload import WorkloadRequest, load
from outpace.errors import OutpaceError, UsageError

HELLO = WorkloadRequest(({"role": "user", "content": "Say hello."},), 8)


@pytest.fixture(scope="module")
def url(model_135m: Path) -> Iterator[str]:
    with outpace_server(model_135m) as url:
        yield f"{url}/v1"


def test_the_figures_of_a_server(url: str) -> None:
    seen: list[int] = []
    report = bench_serve(
        url,
        [HELLO],
        Load(num_requests=6, concurrency=3),
        limits=Limits(ttft_ms=60_000, tpot_ms=60_000),
        on_request=lambda number, _: seen.append(number),
    )
    assert sorted(seen) == list(range(6))
    assert (report.num_whole, report.errors, report.tokens_counted) == (6, {}, True)
    assert report.completion_tokens == 48
    assert report.prompt_tokens % 6 == 0 < report.prompt_tokens
    assert report.ttft is not None
    assert report.e2e is not None
    assert 0 < report.ttft.p50 <= report.e2e.p50 <= report.e2e.max <= report.seconds * 1e3
    assert report.tok_s == pytest.approx(48 / report.seconds)
    assert report.goodput_rps == pytest.approx(6 / report.seconds)
    assert json.loads(as_json(report))["num_whole"] == 6


def test_requests_come_at_random_times(url: str) -> None:
    report = bench_serve(url, [HELLO], Load(num_requests=5, rate=50.0, num_warmup=0))
    assert report.num_whole == 5
    assert report.seconds >= 0.02
    assert bench_serve(url, [HELLO], Load(num_requests=2), limits=Limits(ttft_ms=1e-6)).goodput_rps == 0


def test_a_rate_of_one_request_waits_for_nothing(url: str) -> None:
    report = bench_serve(url, [HELLO], Load(num_requests=1, rate=0.01, num_warmup=0))
    assert report.e2e is not None
    assert report.seconds * 1e3 < report.e2e.max + 5_000


def test_no_proxy_comes_between(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert bench_serve(url, [HELLO], Load(num_requests=1)).num_whole == 1


@pytest.mark.parametrize("wrong", ["http://127.0.0.1:99999/v1", "localhost:8000", "http://", "ftp://x/v1"])
def test_an_address_that_is_none(wrong: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        bench_serve(wrong, [HELLO], Load(num_requests=1), model="m")


def test_an_empty_answer_is_not_good() -> None:
    with answering("[DONE]") as url:
        load = Load(num_requests=1, num_warmup=0)
        assert bench_serve(url, [HELLO], load, model="m", limits=Limits(ttft_ms=1e6)).goodput_rps == 0


def test_tools_and_formats_are_sent(url: str, tmp_path: Path) -> None:
    function = {"name": "f", "description": "D", "parameters": {"type": "object", "properties": {}}}
    record = {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
        "tools": [{"type": "function", "function": function}],
    }
    path = tmp_path / "tools.jsonl"
    path.write_text(json.dumps(record))
    plain = bench_serve(url, [WorkloadRequest(({"role": "user", "content": "Hi"},), 4)], Load(num_requests=1))
    assert bench_serve(url, load(str(path)), Load(num_requests=1)).prompt_tokens > plain.prompt_tokens + 20
    path.write_text(json.dumps({**record, "tools": [5]}))
    with pytest.raises(UsageError, match="tools"):
        load(str(path))


@contextmanager
def answering(*events: str, status: int = 200) -> Iterator[str]:
    """A server that answers every chat with these events and then closes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for event in events:
                self.wfile.write(f"data: {event}\n\n".encode())

        def log_message(self, *args: object) -> None:
            pass

    with http_server(Handler) as url:
        yield f"{url}/v1"


def piece(text: str, finish_reason: str | None = None) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish_reason}]})


@pytest.mark.parametrize(
    ("events", "status", "error"),
    [
        ([piece("a"), piece("b")], 200, "cut"),
        ([piece("a"), '{"error": {"message": "broken"}}'], 200, "error event"),
        (["{"], 200, "not the dialect's form"),
        (["5"], 200, "not the dialect's form"),
        ([], 429, "HTTP 429"),
    ],
)
def test_what_fails_is_counted_by_kind(events: list[str], status: int, error: str) -> None:
    with answering(*events, status=status) as url:
        report = bench_serve(url, [HELLO], Load(num_requests=2, num_warmup=0), model="m")
    assert (report.num_whole, report.errors) == (0, {error: 2})
    assert report.ttft is None
    assert report.completion_tokens == 0


def test_a_server_that_counts_no_tokens() -> None:
    with answering(piece("a"), piece("b"), piece("c", "stop"), "[DONE]") as url:
        report = bench_serve(url, [HELLO], Load(num_requests=2, num_warmup=0), model="m")
    assert (report.num_whole, report.tokens_counted, report.completion_tokens) == (2, False, 6)


def test_nobody_is_there() -> None:
    with answering() as url:
        pass
    with pytest.raises(OutpaceError, match="is the address right"):
        bench_serve(url, [HELLO], Load(num_requests=1))
    report = bench_serve(url, [HELLO], Load(num_requests=1, num_warmup=0), model="m")
    assert report.errors == {"ConnectError": 1}


def test_formulas() -> None:
    timing = AnswerTiming(0.0, [1.0, 1.5, 3.0], 3.5, completion_tokens=5)
    assert (timing.ttft, timing.tpot, timing.gaps) == (1.0, 0.5, [0.5, 1.5])
    assert AnswerTiming(0.0).tpot is None
    values = [float(i) for i in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([7.0], 0.5) == 7.0


def verb(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outpace.cli.main", "bench", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_verb(url: str) -> None:
    arguments = ["--url", url, "--workload", "chat", "--max-tokens", "4"]
    shown = verb(*arguments, "--requests", "2", "-c", "2")
    assert shown.returncode == 0, shown.stderr
    assert "TTFT" in shown.stdout
    assert "2 of 2 answers whole" in shown.stdout
    told = verb(*arguments, "--requests", "1", "--json")
    assert json.loads(told.stdout.splitlines()[-1])["completion_tokens"] == 4
    with answering() as gone:
        pass
    failed = verb("--url", gone, "--model", "m", "--requests", "1")
    assert failed.returncode == 1
    assert "1 x ConnectError" in failed.stdout
