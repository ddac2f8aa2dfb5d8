"""The engine's figures for Prometheus.

A step adds to plain numbers, which costs well under a microsecond each; Prometheus' own objects are made
when somebody reads them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from outpace.engine.request import Request
from outpace.engine.scheduler import Scheduler
from outpace.types import FinishReason, StepStats

if TYPE_CHECKING:  # a program without a metrics endpoint starts sooner without it
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import HistogramMetricFamily, Metric

__all__ = ["EngineMetrics"]

_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds
_ACCEPTANCE = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # tokens
_TOKEN_TIME = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds


class _Histogram:
    """Counts per bucket; `bounds` are the buckets' upper ends."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        from prometheus_client.core import HistogramMetricFamily

        names = [*map(str, self.bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self.counts)), strict=True))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.total)


class EngineMetrics:
    """Counts of one engine, and a collector of Prometheus' own kind."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._disk_tokens = 0  # of these
        self._finished = dict.fromkeys(FinishReason, 0)
        self._steps = self._rows = self._new_tokens = 0
        self._step_seconds = self._backend_seconds = self._draft_seconds = 0.0
        self.num_drafting_steps = 0  # those in which a drafter was asked
        self._drafts: dict[str, list[int]] = {}  # proposer -> [drafted, accepted]
        self._ttft = _Histogram(_LATENCY)
        self._total = _Histogram(_LATENCY)
        self._token_time = _Histogram(_TOKEN_TIME)
        self._acceptance_length = _Histogram(_ACCEPTANCE)

    @cached_property
    def registry(self) -> CollectorRegistry:
        """What a metrics endpoint renders."""
        from prometheus_client import CollectorRegistry

        registry = CollectorRegistry()
        registry.register(self)
        return registry

    @property
    def draft_seconds(self) -> float:
        """Time in proposing drafts and learning from them, all steps together."""
        return self._draft_seconds

    def step(self, stats: StepStats) -> None:
        """A step was done."""
        self._steps += 1
        self._rows += stats.num_rows
        self._new_tokens += stats.num_new_tokens
        self._step_seconds += stats.step_seconds
        self._backend_seconds += stats.backend_seconds
        self._draft_seconds += stats.draft_seconds
        self.num_drafting_steps += stats.draft_seconds > 0.0

    def draft(self, proposer: str, num_drafted: int, num_accepted: int) -> None:
        """A draft of the proposer's was verified."""
        counts = self._drafts.setdefault(proposer, [0, 0])
        counts[0] += num_drafted
        counts[1] += num_accepted
        self._acceptance_length.add(num_accepted + 1)

    def tokens(self, request: Request, count: int, now: float) -> None:
        """A request got `count` tokens at `now` (`time.perf_counter()` seconds)."""
        if request.last_token_at:
            self._token_time.add((now - request.last_token_at) / count, count)
        else:
            self._ttft.add(now - request.submitted_at)
            self._prompt_tokens += request.num_prompt_tokens
            self._cached_tokens += request.num_cached_tokens
            self._disk_tokens += request.num_disk_tokens
        request.last_token_at = now

    def finished(self, request: Request, reason: FinishReason, now: float) -> None:
        """A request has ended."""
        self._finished[reason] += 1
        self._total.add(now - request.submitted_at)

    def _draft_families(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        families = [
            CounterMetricFamily(f"outpace_{name}", text, labels=["proposer"])
            for name, text in (
                ("draft_tokens", "Draft tokens verified."),
                ("accepted_draft_tokens", "Draft tokens accepted."),
                ("rejected_draft_tokens", "Draft tokens rejected."),
            )
        ]
        for proposer, (drafted, accepted) in self._drafts.items():
            for family, value in zip(families, (drafted, accepted, drafted - accepted), strict=True):
                family.add_metric([proposer], value)
        yield from families
        yield self._acceptance_length.family(
            "outpace_acceptance_length", "Tokens of a step that verified a draft, the bonus token included."
        )

    def _prefix_families(self) -> Iterator[Metric]:
        """The prefix cache's tiers: what the one in memory lacks is looked for on disk."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        cache, disk = self._scheduler.pool.cache, self._scheduler.disk
        if cache is None:
            return
        in_memory = self._cached_tokens - self._disk_tokens
        tiers = {"memory": (in_memory, self._prompt_tokens - in_memory, cache.num_evicted)}
        if disk is not None:
            missed = self._prompt_tokens - self._cached_tokens
            tiers["disk"] = self._disk_tokens, missed, disk.store.num_evicted
        texts = (
            ("hit_tokens", "Prompt tokens found, by tier."),
            ("miss_tokens", "Prompt tokens not found, by tier."),
            ("evicted_blocks", "Blocks evicted, by tier."),
        )
        for i, (name, text) in enumerate(texts):
            family = CounterMetricFamily(f"outpace_prefix_tier_{name}", text, labels=["tier"])
            for tier, values in tiers.items():
                family.add_metric([tier], values[i])
            yield family
        if disk is None:
            return
        store = disk.store
        yield GaugeMetricFamily(
            "outpace_prefix_disk_bytes", "This model's blocks on disk.", store.num_blocks * store.block_bytes
        )
        counters = (
            ("written_blocks", "Blocks written to disk.", store.num_written),
            ("damaged_blocks", "Blocks found damaged on disk, and dropped.", store.num_damaged),
            ("write_errors", "Failures after which nothing more is written.", store.num_errors),
            ("load_seconds", "Time in reading blocks from disk.", disk.load_seconds),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(f"outpace_prefix_disk_{name}", text, value)

    def collect(self) -> Iterator[Metric]:
        """Everything, as Prometheus' metric families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        scheduler, pool = self._scheduler, self._scheduler.pool
        gauges = (
            ("requests_running", "Requests that run now.", len(scheduler.running)),
            ("requests_waiting", "Requests that wait for room.", len(scheduler.waiting)),
            ("kv_blocks", "Blocks of the KV cache.", pool.num_blocks),
            ("kv_blocks_held", "Blocks that requests hold now.", pool.num_held),
            (
                "prefix_cache_blocks",
                "Blocks that the prefix cache knows.",
                0 if pool.cache is None else len(pool.cache),
            ),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"outpace_{name}", text, value)
        counters = (
            (
                "prompt_tokens",
                "Prompt tokens of requests that reached their first token.",
                self._prompt_tokens,
            ),
            ("prefix_cache_hit_tokens", "Of these, found in the prefix cache.", self._cached_tokens),
            ("generated_tokens", "Tokens generated.", self._new_tokens),
            ("steps", "Engine steps.", self._steps),
            ("step_rows", "Rows of all steps.", self._rows),
            ("step_seconds", "Time in steps.", self._step_seconds),
            ("backend_seconds", "Time in the backend.", self._backend_seconds),
            ("draft_seconds", "Time in proposing drafts and learning from them.", self._draft_seconds),
            (
                "preemptions",
                "Requests that gave their blocks back for an older one.",
                scheduler.num_preemptions,
            ),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(f"outpace_{name}", text, value)
        ends = CounterMetricFamily(
            "outpace_requests_finished", "Requests that ended.", labels=["finish_reason"]
        )
        for reason, count in self._finished.items():
            ends.add_metric([reason.value], count)
        yield ends
        yield from self._prefix_families()
        yield from self._draft_families()
        yield self._ttft.family("outpace_time_to_first_token_seconds", "From submit to the first token.")
        yield self._token_time.family("outpace_time_per_output_token_seconds", "Between tokens.")
        yield self._total.family("outpace_request_seconds", "From submit to the end.")
