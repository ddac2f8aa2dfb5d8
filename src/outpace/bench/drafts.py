"""`bench drafts`: workloads with drafts off and on, request by request in turns, as ratios.

Both runs of a request must give the same tokens. What the requests of a workload leave for those after them
is drafted from, as in use, but nothing from before: each round of a workload is a scope of its own, and the
runs without drafts leave nothing.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from outpace.bench.generate import follow, sha256_of
from outpace.bench.timing import StreamTiming, rate
from outpace.bench.workload import WorkloadRequest
from outpace.errors import BackendError
from outpace.llm import LLM
from outpace.types import DraftHints, TokenDelta

OFF, ON = "off", "on"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftFigures:
    """One workload's figures, drafts off and on; the field names are keys of the JSON and stay.

    `tok_s` is all decode tokens over all decode time (of a round; the median over the rounds), with
    `concurrency` requests at once all tokens over the wall-clock time. `tokens_per_step` includes the bonus
    token. `drafts`: proposer -> [drafted, accepted], of all rounds.
    """

    workload: str
    requests: int
    completion_tokens: int
    tok_s: Mapping[str, float]
    ratio: float
    tokens_per_step: float
    ttft_ms: Mapping[str, float]
    drafts: Mapping[str, tuple[int, int]]
    output_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftReport:
    """The figures of `bench drafts`. `draft_us`: what drafting took of each step, microseconds."""

    model: str
    rounds: int
    concurrency: int
    temperature: float | None  # None: as the workload says
    draft_us: float
    workloads: tuple[DraftFigures, ...]


def bench_drafts(
    llm: LLM,
    workloads: Mapping[str, Sequence[WorkloadRequest]],
    *,
    rounds: int = 1,
    concurrency: int = 1,
    temperature: float | None = None,
    on_request: Callable[[str], None] = lambda _: None,
) -> DraftReport:
    """Run the workloads; `on_request` hears of each request. Raises BackendError where tokens differ."""
    metrics = llm.loop.engine.metrics
    results: list[DraftFigures] = []
    for name, requests in workloads.items():
        changed = requests
        if temperature is not None:
            changed = [replace(request, temperature=temperature) for request in requests]
        results.append(_workload(llm, name, changed, rounds, concurrency, on_request))
    return DraftReport(
        model=llm.model_name,
        rounds=rounds,
        concurrency=concurrency,
        temperature=temperature,
        draft_us=metrics.draft_seconds / max(1, metrics.num_drafting_steps) * 1e6,
        workloads=tuple(results),
    )


def _workload(
    llm: LLM,
    name: str,
    requests: Sequence[WorkloadRequest],
    rounds: int,
    concurrency: int,
    on_request: Callable[[str], None],
) -> DraftFigures:
    speeds: dict[str, list[float]] = {OFF: [], ON: []}
    first_tokens: dict[str, list[float]] = {OFF: [], ON: []}
    steps = tokens = 0
    counts: Counter[tuple[str, int]] = Counter()
    digest = ""
    for _ in range(rounds):
        timings = _round(llm, name, requests, concurrency, on_request)
        for mode, (followed, seconds) in timings.items():
            flat = [timing for group in followed for timing in group]
            if concurrency == 1:
                speeds[mode].append(_decode_rate(flat))
            else:
                speeds[mode].append(rate(sum(len(timing.token_ids) for timing in flat), seconds) or 0.0)
            first_tokens[mode] += [timing.ttft_ms for timing in flat if timing.ttft_ms is not None]
        drafted = [timing for group in timings[ON][0] for timing in group]
        steps += sum(timing.num_decode_steps for timing in drafted)
        tokens += sum(timing.num_decode_tokens for timing in drafted)
        for timing in drafted:
            for count in timing.draft_counts:
                counts[count.proposer, 0] += count.num_drafted
                counts[count.proposer, 1] += count.num_accepted
        digest = sha256_of(timing.token_ids for timing in drafted)
    tok_s = {mode: median(values) for mode, values in speeds.items()}
    return DraftFigures(
        workload=name,
        requests=len(requests),
        completion_tokens=tokens // rounds,
        tok_s=tok_s,
        ratio=tok_s[ON] / tok_s[OFF] if tok_s[OFF] else 0.0,
        tokens_per_step=rate(tokens, steps) or 0.0,
        ttft_ms={mode: median(values) for mode, values in first_tokens.items()},
        drafts={who: (counts[who, 0], counts[who, 1]) for who in sorted({key[0] for key in counts})},
        output_sha256=digest,
    )


def _decode_rate(timings: Sequence[StreamTiming]) -> float:
    made = sum(timing.num_decode_tokens for timing in timings)
    return rate(made, sum(timing.decode_seconds for timing in timings)) or 0.0


_Followed = tuple[list[list[StreamTiming]], float]
"""Groups of requests that ran together, and the seconds of all groups."""


def _round(
    llm: LLM,
    name: str,
    requests: Sequence[WorkloadRequest],
    concurrency: int,
    on_request: Callable[[str], None],
) -> dict[str, _Followed]:
    scope = uuid.uuid4().hex
    groups: dict[str, list[list[StreamTiming]]] = {OFF: [], ON: []}
    seconds = {OFF: 0.0, ON: 0.0}
    for number, start in enumerate(range(0, len(requests), concurrency)):
        group = requests[start : start + concurrency]
        for mode in (OFF, ON) if number % 2 == 0 else (ON, OFF):
            timings = _together(llm, group, DraftHints(scope, drafts=mode == ON))
            groups[mode].append(timings)
            seconds[mode] += max(timing.last for timing in timings) - min(t.started for t in timings)
        for i, (off, on) in enumerate(zip(groups[OFF][-1], groups[ON][-1], strict=True), start + 1):
            if off.token_ids != on.token_ids:
                raise BackendError(f"{name}, request {i}: drafts changed the answer")
            on_request(f"{name}, request {i}: {len(on.token_ids)} tokens")
    return {mode: (groups[mode], seconds[mode]) for mode in (OFF, ON)}


def _together(llm: LLM, group: Sequence[WorkloadRequest], hints: DraftHints) -> list[StreamTiming]:
    """Run requests at once; every prompt is computed anew, but for what the prefix cache has of it."""
    prompts = [llm.encode_chat(request.messages) for request in group]

    def submit(request: WorkloadRequest, prompt: list[int]) -> Iterator[TokenDelta]:
        prediction = llm.tokenizer.encode(request.prediction, add_special=False) if request.prediction else []
        with_prediction = replace(hints, prediction=prediction)
        return iter(llm.loop.submit(prompt, request.params, hints=with_prediction))

    if len(group) == 1:
        return [follow(partial(submit, group[0], prompts[0]))]
    with ThreadPoolExecutor(len(group)) as executor:
        futures = [
            executor.submit(follow, partial(submit, request, prompt))
            for request, prompt in zip(group, prompts, strict=True)
        ]
        return [future.result() for future in futures]
