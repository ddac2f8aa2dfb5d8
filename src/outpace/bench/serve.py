"""`bench serve`: what a server's clients see, for any OpenAI-compatible address.

Of each request: TTFT, from sending it to the first piece of its answer; E2E, to its end; TPOT = (last piece -
first piece) / (output tokens - 1). ITL are the gaps between pieces, of all requests together: tokens that
come together are one piece. Total tokens/s are all output tokens over the time from the first request to
the last answer's end. Goodput is the requests a second that were whole and kept to the limits asked for.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outpace.bench.answers import AnswerTiming, timed_answer
from outpace.bench.dialects import DIALECTS, Dialect
from outpace.bench.trace import Exchange, earlier
from outpace.bench.workload import WorkloadRequest
from outpace.errors import OutpaceError, UsageError

if TYPE_CHECKING:
    import httpx

__all__ = ["Limits", "Load", "Percentiles", "ServeReport", "bench_serve", "percentile"]

_CHAT = DIALECTS["/v1/chat/completions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests are sent: `concurrency` at once, or at random `rate` a second (Poisson, `seed`)."""

    num_requests: int
    concurrency: int = 1
    rate: float | None = None
    num_warmup: int = 1
    max_tokens: int | None = None  # at most these, where the workload says more
    seed: int = 0
    think: float = 0.0  # in a replay: how much of the recorded pauses is kept


@dataclass(frozen=True, slots=True)
class Limits:
    """What a good answer keeps to, in milliseconds; None: any."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Of one figure, in milliseconds."""

    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeReport:
    """The figures of `bench serve`; the field names are keys of the JSON and stay. None: not measured."""

    url: str
    model: str
    workload: str
    concurrency: int
    rate: float | None
    num_requests: int
    num_whole: int
    errors: dict[str, int]  # by kind
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tokens_counted: bool  # by the server; else each piece counts as a token
    tok_s: float  # of all streams together
    stream_tok_s: float | None  # the median of 1 / TPOT
    ttft: Percentiles | None
    tpot: Percentiles | None
    itl: Percentiles | None
    e2e: Percentiles | None
    goodput_rps: float
    client_cpu_share: float  # of one core, in this program: high, and the figures are its own


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: its dialect and body, and when it is sent in a replay."""

    dialect: Dialect
    body: dict[str, Any]
    after: Sequence[int] = ()  # those that must have ended before
    think: float = 0.0  # seconds from then on
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def bench_serve(
    url: str,
    requests: Sequence[WorkloadRequest],
    load: Load,
    *,
    trace: Sequence[Exchange] = (),
    model: str | None = None,
    workload: str = "",
    api_key: str | None = None,
    limits: Limits | None = None,
    timeout: float = 600.0,
    on_request: Callable[[int, AnswerTiming], None] = lambda _number, _timing: None,
) -> ServeReport:
    """Send the workload, over and over until `load` is done, and report.

    With a `trace` its requests are sent instead, once: in their order, as many at once as were then, with
    `load.think` of the recorded pauses before them. `url` ends in `/v1` or what stands for it; `model` None
    is the first that the server lists. Raises `UsageError` where httpx is missing or `url` is no address,
    `OutpaceError` where nobody answers.
    """
    try:
        import httpx
    except ImportError:
        raise UsageError("bench serve needs httpx: pip install 'outpace[bench]'") from None
    base = _base_url(url)
    headers = {"authorization": f"Bearer {api_key}", "x-api-key": api_key} if api_key else {}
    pool = httpx.Limits(max_connections=None, max_keepalive_connections=None)

    async def run() -> ServeReport:
        # No proxy from the environment: it would be measured instead, or not know this machine.
        async with httpx.AsyncClient(
            base_url=base, headers=headers, timeout=timeout, limits=pool, trust_env=False
        ) as client:
            name = model or await _first_model(client)
            asks = [Ask(_CHAT, _body(request, name, load.max_tokens)) for request in requests]
            if trace:
                asks = _replayed(trace, name, load)
            for number in range(load.num_warmup):
                await _timed(client, asks[number % len(asks)])
            cpu, start = time.process_time(), time.perf_counter()
            if trace:
                timings = await _replay(client, asks, on_request)
            else:
                timings = await _send(client, asks, load, on_request)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return _report(url, name, workload, load, timings, seconds, cpu, limits or Limits())

    return asyncio.run(run())


def _base_url(url: str) -> httpx.URL:
    import httpx

    try:
        base = httpx.URL(url.rstrip("/") + "/")
        if base.scheme in {"http", "https"} and base.host and (base.port or 1) <= 0xFFFF:
            return base
    except httpx.InvalidURL:
        pass
    raise UsageError(f"{url!r} is no address; write one like http://127.0.0.1:8000/v1")


async def _first_model(client: httpx.AsyncClient) -> str:
    import httpx

    try:
        answer = await client.get("models")
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise OutpaceError(
            f"{client.base_url}models: {error or type(error).__name__}; is the address right (it ends in "
            "/v1)? --model names a model that a server does not list"
        ) from None


def _body(request: WorkloadRequest, model: str, max_tokens: int | None) -> dict[str, Any]:
    return {
        "model": model,
        "messages": list(request.messages),
        "max_tokens": min(max_tokens or request.max_tokens, request.max_tokens),
        "temperature": request.temperature,
        "seed": 0,
        **request.extra,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _replayed(trace: Sequence[Exchange], model: str, load: Load) -> list[Ask]:
    """A trace's requests that can be asked again, in the order of their starts."""
    asked = [exchange for exchange in trace if exchange.generates]
    return [
        Ask(
            DIALECTS[exchange.path],
            exchange.asked(model, load.max_tokens),
            after,
            load.think * (exchange.start - max((asked[each].end for each in after), default=0.0)),
            exchange.headers,
        )
        for exchange, after in zip(asked, earlier(asked), strict=True)
    ]


async def _timed(client: httpx.AsyncClient, ask: Ask) -> AnswerTiming:
    # Below the client's address, which ends in /v1 or what stands for it.
    path = ask.dialect.path.removeprefix("/v1/")
    return await timed_answer(client, ask.dialect, ask.body, path=path, headers=ask.headers)


async def _replay(
    client: httpx.AsyncClient,
    asks: Sequence[Ask],
    on_request: Callable[[int, AnswerTiming], None],
) -> list[AnswerTiming]:
    ended = [asyncio.Event() for _ in asks]
    timings: list[AnswerTiming] = []

    async def ask_in_turn(number: int, ask: Ask) -> None:
        for before in ask.after:
            await ended[before].wait()
        await asyncio.sleep(ask.think)
        timing = await _timed(client, ask)
        timings.append(timing)
        ended[number].set()
        on_request(number, timing)

    async with asyncio.TaskGroup() as group:
        for number, ask in enumerate(asks):
            group.create_task(ask_in_turn(number, ask))
    return timings


async def _send(
    client: httpx.AsyncClient,
    asks: Sequence[Ask],
    load: Load,
    on_request: Callable[[int, AnswerTiming], None],
) -> list[AnswerTiming]:
    timings: list[AnswerTiming] = []

    async def ask(number: int) -> None:
        timing = await _timed(client, asks[number % len(asks)])
        timings.append(timing)
        on_request(number, timing)

    if load.rate is None:
        numbers = iter(range(load.num_requests))

        async def client_loop() -> None:
            for number in numbers:
                await ask(number)

        await asyncio.gather(*(client_loop() for _ in range(min(load.concurrency, load.num_requests))))
        return timings
    draw = random.Random(load.seed)  # noqa: S311 - a schedule, no secret
    async with asyncio.TaskGroup() as group:
        for number in range(load.num_requests):
            if number:
                await asyncio.sleep(draw.expovariate(load.rate))
            group.create_task(ask(number))
    return timings


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _percentiles(seconds: Sequence[float]) -> Percentiles | None:
    if not seconds:
        return None
    p50, p90, p99, top = (1e3 * percentile(seconds, share) for share in (0.5, 0.9, 0.99, 1.0))
    return Percentiles(p50=p50, p90=p90, p99=p99, max=top)


def _report(
    url: str,
    model: str,
    workload: str,
    load: Load,
    timings: Sequence[AnswerTiming],
    seconds: float,
    cpu_seconds: float,
    limits: Limits,
) -> ServeReport:
    whole = [timing for timing in timings if not timing.error]
    tpots = [timing.tpot for timing in whole if timing.tpot is not None]
    completion = sum(timing.completion_tokens for timing in whole)
    return ServeReport(
        url=url,
        model=model,
        workload=workload,
        concurrency=load.concurrency,
        rate=load.rate,
        num_requests=len(timings),
        num_whole=len(whole),
        errors=dict(Counter(timing.error for timing in timings if timing.error)),
        seconds=seconds,
        prompt_tokens=sum(timing.prompt_tokens for timing in whole),
        cached_tokens=sum(timing.cached_tokens for timing in whole),
        completion_tokens=completion,
        tokens_counted=all(timing.counted for timing in whole),
        tok_s=completion / seconds,
        stream_tok_s=1 / percentile(tpots, 0.5) if tpots and percentile(tpots, 0.5) > 0 else None,
        ttft=_percentiles([timing.ttft for timing in whole if timing.ttft is not None]),
        tpot=_percentiles(tpots),
        itl=_percentiles([gap for timing in whole for gap in timing.gaps]),
        e2e=_percentiles([timing.end for timing in whole]),
        goodput_rps=sum(_keeps(timing, limits) for timing in whole) / seconds,
        client_cpu_share=cpu_seconds / seconds,
    )


def _keeps(timing: AnswerTiming, limits: Limits) -> bool:
    if limits.ttft_ms is not None and (timing.ttft is None or 1e3 * timing.ttft > limits.ttft_ms):
        return False
    # An answer of one token has no time between tokens.
    return limits.tpot_ms is None or timing.tpot is None or 1e3 * timing.tpot <= limits.tpot_ms
