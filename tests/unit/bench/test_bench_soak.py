"""`bench soak`: a short one against a real server, and what it makes of servers and memory that fail."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from bench_servers import http_server

from outpace.bench.server_process import ServerProcess, read_metrics
from outpace.bench.soak import MAX_BODY, MAX_CONTEXT, Soak, bench_soak, growth
from outpace.bench.soak_clients import LEFT, OK, REFUSED, Clients
from outpace.errors import OutpaceError

SECONDS = 8.0


def test_a_short_soak_holds(model_135m: Path) -> None:
    soak = Soak(num_clients=10, seconds=SECONDS, warmup=2.0, max_growth=10.0, pause=0.05, seed=3)
    report = bench_soak(str(model_135m), soak, ["--backend", "null"])
    assert report.failures == [], report.errors
    assert (report.requests_held, report.blocks_held, report.sockets_left) == (0, 0, 0)
    assert (report.errors, report.log_errors, report.exit_code) == ({}, [], 0)
    assert report.num_ok > 20
    assert report.num_left > 5
    assert report.generated_tokens > 100
    assert sum(report.requests.values()) == report.num_ok + report.num_left + report.num_refused
    assert len(report.rss_samples) > 3


def test_memory_that_grows_fails(model_135m: Path) -> None:
    """The limit is one that no process keeps to: it must shrink."""
    soak = Soak(num_clients=1, seconds=1.0, warmup=0.0, max_growth=-0.9)
    report = bench_soak(str(model_135m), soak, ["--backend", "null"])
    assert [what for what in report.failures if what.startswith("memory grew")]


def test_growth_is_that_of_levels_not_of_peaks() -> None:
    flat = [(float(at), 100.0 + (at == 50)) for at in range(100)]
    assert growth(flat)[:2] == (100.0, 100.0)
    first, last, slope = growth([(float(at), 100.0 + at) for at in range(100)])
    assert (first, last, slope) == (104.5, 194.5, pytest.approx(1.0))
    assert growth([(0.0, 7.0)]) == (7.0, 7.0, 0.0)


@contextmanager
def answering(status: int, body: str, kind: str = "text/event-stream") -> Iterator[str]:
    """A server that answers everything alike and closes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_DELETE = do_POST  # noqa: N815 - the library's names

        def log_message(self, *args: object) -> None:
            pass

    with http_server(Handler) as url:
        yield url


def outcomes(url: str, count: int = 40) -> dict[str, set[str]]:
    """What one client makes of a server, by what it did."""

    async def main() -> dict[str, set[str]]:
        seen: dict[str, set[str]] = {}
        draw = random.Random(1)
        async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
            clients = Clients(client, url, "m", max_body=MAX_BODY, max_context=MAX_CONTEXT)
            await clients.prepare()
            for _ in range(count):
                name, outcome = await clients.act(draw)
                seen.setdefault(name, set()).add(outcome)
        return seen

    return asyncio.run(main())


def test_a_server_that_breaks_is_found_out() -> None:
    with answering(500, '{"error": {"message": "broken"}}', "application/json") as url:
        seen = outcomes(url)
    assert all(outcome.endswith("HTTP 500") for outcome in seen["answer"])
    assert not {OK, LEFT, REFUSED} & seen["bad request"]
    assert not {OK, LEFT, REFUSED} & seen["websocket"]


def test_a_stream_without_its_end_is_found_out() -> None:
    piece = json.dumps({"type": "x", "choices": [{"delta": {"content": "a"}, "finish_reason": None}]})
    with answering(200, f"data: {piece}\n\n") as url:
        seen = outcomes(url)
    assert not {OK, REFUSED} & seen["answer"]
    assert any(outcome.endswith("stream: cut") for outcome in seen["answer"])


def test_an_answer_that_changes_is_found_out(model_135m: Path) -> None:
    with ServerProcess(str(model_135m), ["--backend", "null", "--kv-cache", "64MiB"]) as server:

        async def main() -> set[str]:
            async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
                clients = Clients(
                    client, server.url, server.model, max_body=MAX_BODY, max_context=MAX_CONTEXT
                )
                await clients.prepare()
                clients._answers = [*clients._answers[1:], clients._answers[0]]
                return {await clients._same_answer(random.Random(seed)) for seed in range(20)}

        assert any(outcome.endswith("another answer") for outcome in asyncio.run(main()))
        assert server.rss_bytes() > 10 << 20
        assert server.num_sockets() > 0
        assert server.cpu_seconds() > 0
        assert server.stop() == 0
        assert not server.alive
        assert server.rss_bytes() == 0


def runs(stat: Path) -> bool:
    """Whether a process is there, and not only its exit status that nobody has asked for."""
    try:
        return ") Z " not in stat.read_text()
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is a signal on Linux only")
def test_a_killed_measurement_leaves_no_server(model_135m: Path) -> None:
    program = (
        "import sys, time\n"
        "from outpace.bench.server_process import ServerProcess\n"
        'server = ServerProcess(sys.argv[1], ["--backend", "null", "--kv-cache", "64MiB"])\n'
        "print(server._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(model_135m)], stdout=subprocess.PIPE, text=True
    ) as measuring:
        assert measuring.stdout is not None
        server = Path("/proc") / measuring.stdout.readline().strip() / "stat"
        assert runs(server)
        measuring.kill()
    deadline = time.monotonic() + 60
    while runs(server):
        assert time.monotonic() < deadline, "the server lives on"
        time.sleep(0.05)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(OutpaceError, match="nothere"):
        ServerProcess(str(tmp_path / "nothere.gguf"))


def test_metrics_are_added_up_over_labels() -> None:
    text = '# HELP a b\na{m="1"} 2.0\na{m="2"} 3\nb 1e3\n'
    assert read_metrics(text) == {"a": 5.0, "b": 1000.0}


def test_the_verb_fails_where_memory_does(model_135m: Path) -> None:
    command = [sys.executable, "-m", "outpace", "bench", "soak", "-m", str(model_135m), "--minutes", "0.02"]
    options = ["-c", "2", "--warmup", "0.9", "--json", "--", "--backend", "null", "--max-body", "2MiB"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, check=False)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (1 if report["failures"] else 0)
    assert report["exit_code"] == 0
    assert "outpace bench" not in done.stderr
