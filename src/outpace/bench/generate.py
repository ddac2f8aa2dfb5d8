"""`bench generate`: a workload's requests through the engine, one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from outpace.bench.timing import StreamTiming, rate
from outpace.bench.workload import WorkloadRequest
from outpace.errors import BackendError
from outpace.types import FinishReason, TokenDelta

Stream = Callable[[WorkloadRequest], Iterator[TokenDelta]]
"""Submits a request and yields its deltas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFigures:
    """One request's figures; the field names are keys of the JSON and stay."""

    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float | None
    tok_s: float | None  # decode tokens over decode time
    acceptance_length: float | None  # tokens per decode step
    finish_reason: str
    output_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateReport:
    """The figures of `bench generate`: those of the whole workload, and each request's.

    Tokens are sums, `ttft_ms` is the median over the requests, `tok_s` all decode tokens over all
    decode time. `output_sha256` is over the token ids in decimal, comma separated, a line a request.
    """

    model: str
    workload: str
    draft: str
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float | None
    tok_s: float | None
    acceptance_length: float | None
    output_sha256: str
    requests: tuple[RequestFigures, ...]


def bench_generate(
    stream: Stream,
    requests: Sequence[WorkloadRequest],
    *,
    model: str,
    workload: str,
    draft: str,
    on_request: Callable[[RequestFigures], None] = lambda _: None,
) -> GenerateReport:
    """Run the requests in order, one at a time; `on_request` hears of each as it ends.

    Raises BackendError where a request fails.
    """
    timings: list[StreamTiming] = []
    figures: list[RequestFigures] = []
    for request in requests:
        timing = follow(partial(stream, request))
        timings.append(timing)
        figures.append(_figures(timing))
        on_request(figures[-1])
    num_decode_tokens = sum(timing.num_decode_tokens for timing in timings)
    first_tokens = [timing.ttft_ms for timing in timings if timing.ttft_ms is not None]
    return GenerateReport(
        model=model,
        workload=workload,
        draft=draft,
        prompt_tokens=sum(timing.num_prompt_tokens for timing in timings),
        completion_tokens=sum(len(timing.token_ids) for timing in timings),
        ttft_ms=median(first_tokens) if first_tokens else None,
        tok_s=rate(num_decode_tokens, sum(timing.decode_seconds for timing in timings)),
        acceptance_length=rate(num_decode_tokens, sum(timing.num_decode_steps for timing in timings)),
        output_sha256=sha256_of(timing.token_ids for timing in timings),
        requests=tuple(figures),
    )


def follow(submit: Callable[[], Iterator[TokenDelta]]) -> StreamTiming:
    """Submit a request, consume its stream and time both. Raises BackendError where it failed."""
    timing = StreamTiming()
    for delta in submit():
        timing.observe(delta)
        if delta.finish_reason is FinishReason.ERROR:
            raise BackendError(delta.error or "the request failed")
    return timing


def sha256_of(outputs: Iterable[Sequence[int]]) -> str:
    """SHA-256 over token ids in decimal, comma separated, a line for each request."""
    digest = hashlib.sha256()
    for token_ids in outputs:
        digest.update((",".join(map(str, token_ids)) + "\n").encode())
    return digest.hexdigest()


def _figures(timing: StreamTiming) -> RequestFigures:
    return RequestFigures(
        prompt_tokens=timing.num_prompt_tokens,
        completion_tokens=len(timing.token_ids),
        ttft_ms=timing.ttft_ms,
        tok_s=timing.tok_s,
        acceptance_length=timing.acceptance_length,
        finish_reason=str(timing.finish_reason),
        output_sha256=sha256_of([timing.token_ids]),
    )
