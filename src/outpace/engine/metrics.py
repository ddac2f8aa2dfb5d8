"""The engine's counts.

A step adds to plain numbers, which costs well under a microsecond each; `prometheus.py` makes Prometheus' own
objects of them when somebody reads them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from outpace.engine.request import Request
from outpace.engine.scheduler import Scheduler
from outpace.text.grammar import GrammarCompiler
from outpace.types import FinishReason, StepStats

__all__ = ["Counts", "EngineMetrics"]

_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds
_TOKEN_TIME = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds
_TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
_ACCEPTANCE = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # tokens


class Counts:
    """`counts` per bucket, the `total` of all values; `bounds` are the upper ends of the buckets."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, as often as it occurred."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class EngineMetrics:
    """Counts of one engine. Times are seconds, sizes tokens, unless a comment says otherwise."""

    def __init__(self, scheduler: Scheduler, grammars: GrammarCompiler) -> None:
        self.scheduler = scheduler
        self.grammars = grammars
        self.prompt_tokens = 0  # of requests that reached their first token
        self.cached_tokens = 0  # of these, found in the prefix cache
        self.disk_tokens = 0  # of these, those that came from disk
        self.finished_requests = dict.fromkeys(FinishReason, 0)
        self.num_steps = self.num_rows = self.new_tokens = 0
        self.step_seconds = self.backend_seconds = 0.0
        self.draft_seconds = 0.0  # in proposing drafts and learning from them
        self.num_drafting_steps = 0  # those in which a drafter was asked
        self.drafts: dict[str, list[int]] = {}  # proposer -> [drafts, tokens drafted, tokens accepted]
        self.acceptance_length: dict[str, Counts] = {}  # proposer -> tokens of a step that verified its draft
        self.first_token = Counts(_LATENCY)
        self.between_tokens = Counts(_TOKEN_TIME)
        # Of requests that have ended:
        self.total = Counts(_LATENCY)
        self.queue = Counts(_LATENCY)
        self.prefill = Counts(_LATENCY)
        self.decode = Counts(_LATENCY)
        self.inference = Counts(_LATENCY)
        self.per_token = Counts(_TOKEN_TIME)
        self.prompt_length = Counts(_TOKENS)
        self.output_length = Counts(_TOKENS)

    def step(self, stats: StepStats) -> None:
        """A step was done."""
        self.num_steps += 1
        self.num_rows += stats.num_rows
        self.new_tokens += stats.num_new_tokens
        self.step_seconds += stats.step_seconds
        self.backend_seconds += stats.backend_seconds
        self.draft_seconds += stats.draft_seconds
        self.num_drafting_steps += stats.draft_seconds > 0.0

    def draft(self, proposer: str, num_drafted: int, num_accepted: int) -> None:
        """A draft of the proposer's was verified."""
        counts = self.drafts.setdefault(proposer, [0, 0, 0])
        counts[0] += 1
        counts[1] += num_drafted
        counts[2] += num_accepted
        self.acceptance_length.setdefault(proposer, Counts(_ACCEPTANCE)).add(num_accepted + 1)

    def tokens(self, request: Request, count: int, now: float) -> None:
        """A request got `count` tokens at `now` (`time.perf_counter()` seconds)."""
        if request.last_token_at:
            self.between_tokens.add((now - request.last_token_at) / count, count)
        else:
            request.first_token_at = now
            request.num_first_tokens = count
            self.first_token.add(now - request.submitted_at)
            self.prompt_tokens += request.num_prompt_tokens
            self.cached_tokens += request.num_cached_tokens
            self.disk_tokens += request.num_disk_tokens
        request.last_token_at = now

    def finished(self, request: Request, reason: FinishReason, now: float) -> None:
        """A request has ended, wherever it was."""
        self.finished_requests[reason] += 1
        self.total.add(now - request.submitted_at)
        self.prompt_length.add(request.num_prompt_tokens)
        self.output_length.add(request.num_output_tokens)
        if not request.admitted_at:
            return
        self.queue.add(request.admitted_at - request.submitted_at)
        if not request.first_token_at:
            return
        decode = request.last_token_at - request.first_token_at
        self.prefill.add(request.first_token_at - request.admitted_at)
        self.decode.add(decode)
        self.inference.add(request.last_token_at - request.admitted_at)
        later = request.num_output_tokens - request.num_first_tokens
        if later > 0:
            self.per_token.add(decode / later)
