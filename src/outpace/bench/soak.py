"""`bench soak`: many clients that come, leave and err for a long time; nothing may break, leak or grow.

What must hold: no request is answered with an error of the server's own (5xx, a stream without its one
terminal event, a connection that breaks, no answer within the time limit); a bad request gets its 4xx; an
answer is the same under load as alone; at the end no request holds a KV block, no socket is left, the log has
no errors and the server ends in order; and from the end of the warm-up on its memory (VmRSS) grows by at
most `max_growth`: the median of the last tenth of its samples against that of the first tenth.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import linear_regression, median
from typing import TYPE_CHECKING

from outpace.bench.server_process import ServerProcess, read_metrics
from outpace.bench.soak_clients import LEFT, OK, REFUSED, Clients
from outpace.errors import UsageError

if TYPE_CHECKING:
    import httpx

__all__ = ["Soak", "SoakReport", "bench_soak", "growth"]

MAX_BODY = 1 << 20  # bytes
MAX_CONTEXT = 2048
# What memory is for is bounded low, so that it is full by the end of the warm-up.
_BOUNDS = {"--max-body": f"{MAX_BODY}B", "--max-context": f"{MAX_CONTEXT}", "--draft-index-tokens": "65536"}
_KV_CACHE = "96MiB"
_DISK_BYTES = str(256 << 20)
_DRAIN_SECONDS = 60.0
_SHARE = 10  # of the samples that are compared
_LOG_MARKS = ("ERROR", "CRITICAL", "Traceback", "Exception")
_ALONE = "outpace:num_requests_running", "outpace:num_requests_waiting", "outpace:kv_blocks_held"


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """How long, how many, and what is allowed."""

    num_clients: int = 50
    seconds: float = 1800.0
    warmup: float = 360.0  # of these, seconds whose memory is not judged
    max_growth: float = 0.02  # of the memory after the warm-up
    timeout: float = 300.0  # seconds after which an answer does not come any more
    pause: float = 0.5  # mean seconds between what a client does
    seed: int = 0


@dataclass(slots=True)
class SoakReport:
    """What happened; the field names are keys of the JSON and stay."""

    model: str
    num_clients: int
    seconds: float
    seed: int
    requests: dict[str, int] = field(default_factory=dict[str, int])  # by what was done
    num_ok: int = 0
    num_left: int = 0  # the client left before the end
    num_refused: int = 0  # with 429
    errors: dict[str, int] = field(default_factory=dict[str, int])  # what must not be, by kind
    generated_tokens: int = 0
    requests_held: int = 0  # at the end, when every client has gone
    blocks_held: int = 0
    sockets_left: int = 0  # more than before
    rss_warm_mb: float | None = None
    rss_end_mb: float | None = None
    rss_growth: float | None = None
    rss_slope_mb_h: float | None = None  # of the line through the samples after the warm-up, MB an hour
    rss_samples: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])  # seconds, MB
    log_errors: list[str] = field(default_factory=list[str])
    exit_code: int | None = None
    failures: list[str] = field(default_factory=list[str])  # empty: all held


@dataclass(slots=True)
class _Run:
    server: ServerProcess
    soak: Soak
    report: SoakReport
    errors: Counter[str] = field(default_factory=Counter[str])
    requests: Counter[str] = field(default_factory=Counter[str])
    samples: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])  # seconds, bytes
    start: float = 0.0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    @property
    def over(self) -> bool:
        return self.elapsed >= self.soak.seconds or not self.server.alive


def bench_soak(
    model: str,
    soak: Soak,
    arguments: Sequence[str] = (),
    *,
    say: Callable[[str], None] = lambda _: None,
) -> SoakReport:
    """Start `outpace serve MODEL ARGUMENTS`, let the clients loose, and judge.

    Raises `UsageError` without httpx, `OutpaceError` where the server does not start.
    """
    try:
        import httpx
    except ImportError:
        raise UsageError("bench soak needs httpx: pip install 'outpace[bench]'") from None
    pool = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    bounds = [part for option in _BOUNDS.items() for part in option]
    with ServerProcess(
        model,
        [*bounds, "--kv-cache", _KV_CACHE, *arguments],
        OUTPACE_PREFIX_CACHE_BYTES=_DISK_BYTES,
    ) as server:
        report = SoakReport(server.model, soak.num_clients, soak.seconds, soak.seed)
        run = _Run(server, soak, report)
        asyncio.run(_soak(run, pool, say))
        report.exit_code = server.stop()
        report.log_errors = [
            line for line in server.log().splitlines() if any(map(line.__contains__, _LOG_MARKS))
        ]
    _judge(run)
    return report


async def _soak(run: _Run, pool: httpx.Limits, say: Callable[[str], None]) -> None:
    import httpx

    before = run.server.num_sockets()
    async with httpx.AsyncClient(
        base_url=run.server.url, timeout=run.soak.timeout, limits=pool, trust_env=False
    ) as client:
        clients = Clients(
            client, run.server.url, run.server.model, max_body=MAX_BODY, max_context=MAX_CONTEXT
        )
        await clients.prepare()
        run.start = time.monotonic()
        watcher = asyncio.create_task(_watch(run, say))
        await asyncio.gather(*(_client(run, clients, number) for number in range(run.soak.num_clients)))
        watcher.cancel()
    if run.server.alive:
        await _drain(run, before)


async def _client(run: _Run, clients: Clients, number: int) -> None:
    draw = random.Random(f"{run.soak.seed} {number}")  # noqa: S311 - no secret
    while not run.over:
        try:
            async with asyncio.timeout(run.soak.timeout):
                name, outcome = await clients.act(draw)
        except TimeoutError:
            name, outcome = "hang", f"no end within {run.soak.timeout:g} s"
        run.requests[name] += 1
        run.report.num_ok += outcome == OK
        run.report.num_left += outcome == LEFT
        run.report.num_refused += outcome == REFUSED
        if outcome not in {OK, LEFT, REFUSED}:
            run.errors[f"{name}: {outcome}"] += 1
        await asyncio.sleep(
            min(draw.expovariate(1 / run.soak.pause), max(0.0, run.soak.seconds - run.elapsed))
        )


async def _watch(run: _Run, say: Callable[[str], None]) -> None:
    """Sample the server's memory; say now and then how it goes."""
    pause = min(5.0, max(0.1, run.soak.seconds / 400))
    told = 0.0
    while not run.over:
        run.samples.append((run.elapsed, run.server.rss_bytes()))
        if run.elapsed - told >= 10:
            told = run.elapsed
            memory = run.samples[-1][1] / 1e6
            say(f"{told:.0f} s: {run.requests.total()} done, {run.errors.total()} errors, {memory:.0f} MB")
        await asyncio.sleep(pause)


async def _drain(run: _Run, sockets_before: int) -> None:
    """Once every client has gone, the server must hold nothing of theirs."""
    import httpx

    report, deadline = run.report, time.monotonic() + _DRAIN_SECONDS
    while True:
        async with httpx.AsyncClient(
            base_url=run.server.url, timeout=_DRAIN_SECONDS, trust_env=False
        ) as client:
            metrics = read_metrics((await client.get("/metrics")).text)
        running, waiting, blocks = (int(metrics[name]) for name in _ALONE)
        report.requests_held, report.blocks_held = running + waiting, blocks
        report.generated_tokens = int(metrics["outpace:generation_tokens_total"])
        report.sockets_left = max(0, run.server.num_sockets() - sockets_before)
        idle = not (running or waiting or blocks or report.sockets_left)
        if idle or time.monotonic() > deadline:
            return
        await asyncio.sleep(0.2)


def growth(samples: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Of samples (time, value): the level of the first and the last tenth, the slope of their line."""
    tenth = max(1, len(samples) // _SHARE)
    first, last = (median(value for _, value in part) for part in (samples[:tenth], samples[-tenth:]))
    slope = linear_regression(*zip(*samples, strict=True)).slope if len(samples) > 1 else 0.0
    return first, last, slope


def _judge(run: _Run) -> None:
    report, soak = run.report, run.soak
    report.requests, report.errors = dict(run.requests), dict(run.errors.most_common())
    report.rss_samples = [(round(at, 2), size / 1e6) for at, size in run.samples if size]
    if warm := [sample for sample in report.rss_samples if sample[0] >= soak.warmup]:
        first, last, slope = growth(warm)
        report.rss_warm_mb, report.rss_end_mb, report.rss_slope_mb_h = first, last, 3600 * slope
        report.rss_growth = last / first - 1
    checks = {
        f"{run.errors.total()} errors": bool(run.errors),
        f"{report.requests_held} requests still run": report.requests_held > 0,
        f"{report.blocks_held} KV blocks leaked": report.blocks_held > 0,
        f"{report.sockets_left} sockets leaked": report.sockets_left > 0,
        f"{len(report.log_errors)} errors in the server's log": bool(report.log_errors),
        f"the server ended with {report.exit_code}": report.exit_code != 0,
        f"memory grew by more than {soak.max_growth:.0%}": (report.rss_growth or 0.0) > soak.max_growth,
        "no sample of memory after the warm-up": report.rss_growth is None,
        "nothing was answered": not report.num_ok,
    }
    report.failures = [what for what, fails in checks.items() if fails]
