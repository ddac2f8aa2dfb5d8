"""What engines count, as Prometheus reads it.

Names are those of vLLM with the prefix `outpace:`, so that its users' dashboards and alerts need another
prefix and nothing else (`docs.vllm.ai/en/latest/usage/metrics`); what vLLM has no name for follows its style.
Every metric has the label `model_name`. Only who renders metrics imports this, since `prometheus_client`
takes time to load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from outpace.engine.metrics import Counts, EngineMetrics

__all__ = ["PREFIX", "registry_of"]

PREFIX = "outpace:"
"""What every metric's name begins with."""

_MODEL = "model_name"
_Values = Sequence[tuple[str, str, float]]  # name without the prefix, what it counts, value
_Labelled = Mapping[str, Sequence[float]]  # label -> a value for each family


def registry_of(engines: Callable[[], Mapping[str, EngineMetrics]]) -> CollectorRegistry:
    """What a metrics endpoint renders. `engines` gives the engines at that time, by their models' names."""
    registry = CollectorRegistry()
    registry.register(_EngineCollector(engines))
    return registry


class _EngineCollector(Collector):
    """One family for each name, with the samples of all engines."""

    def __init__(self, engines: Callable[[], Mapping[str, EngineMetrics]]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for model, metrics in self._engines().items():
            for family in _families(model, metrics):
                families.setdefault(family.name, family)
                if families[family.name] is not family:
                    families[family.name].samples.extend(family.samples)
        yield from families.values()


def _families(model: str, metrics: EngineMetrics) -> Iterator[Metric]:
    yield from _gauges(model, _gauge_values(metrics))
    yield from _counters(model, _counter_values(metrics))
    ends = {reason.value: (count,) for reason, count in metrics.finished_requests.items()}
    yield from _labelled(model, "finished_reason", ends, (("request_success", "Requests that ended."),))
    yield from _prefix_families(model, metrics)
    yield from _draft_families(model, metrics)
    for name, text, counts in _histograms(metrics):
        yield _histogram(name, text, [_MODEL], [([model], counts)])


def _gauge_values(metrics: EngineMetrics) -> _Values:
    scheduler, pool = metrics.scheduler, metrics.scheduler.pool
    cache = pool.cache
    return (
        ("num_requests_running", "Requests that run now.", len(scheduler.running)),
        ("num_requests_waiting", "Requests that wait for room.", len(scheduler.waiting)),
        (
            "kv_cache_usage_perc",
            "KV blocks that requests hold now; 1 is all.",
            pool.num_held / pool.num_blocks,
        ),
        ("kv_blocks", "Blocks of the KV cache.", pool.num_blocks),
        ("kv_blocks_held", "Blocks that requests hold now.", pool.num_held),
        ("prefix_cache_blocks", "Blocks that the prefix cache knows.", 0 if cache is None else len(cache)),
        (
            "prefix_cache_pinned_blocks",
            "Of these, those that clients asked to keep.",
            0 if cache is None else cache.num_pinned,
        ),
        ("compiled_grammars", "Grammars that no request waits for.", metrics.grammars.num_compiled),
    )


def _counter_values(metrics: EngineMetrics) -> _Values:
    scheduler = metrics.scheduler
    looked_up = 0 if scheduler.pool.cache is None else metrics.prompt_tokens
    return (
        ("prompt_tokens", "Prompt tokens of requests that reached their first token.", metrics.prompt_tokens),
        ("generation_tokens", "Tokens generated.", metrics.new_tokens),
        ("prefix_cache_queries", "Prompt tokens looked for in the prefix cache.", looked_up),
        ("prefix_cache_hits", "Of these, found, in memory or on disk.", metrics.cached_tokens),
        (
            "num_preemptions",
            "Requests that gave their blocks back for an older one.",
            scheduler.num_preemptions,
        ),
        ("steps", "Engine steps.", metrics.num_steps),
        ("step_rows", "Rows of all steps.", metrics.num_rows),
        ("step_seconds", "Time in steps.", metrics.step_seconds),
        ("backend_seconds", "Time in the backend.", metrics.backend_seconds),
        ("draft_seconds", "Time in proposing drafts and learning from them.", metrics.draft_seconds),
    )


def _prefix_families(model: str, metrics: EngineMetrics) -> Iterator[Metric]:
    """The prefix cache's tiers: what the one in memory lacks is looked for on disk."""
    cache, disk = metrics.scheduler.pool.cache, metrics.scheduler.disk
    if cache is None:
        return
    in_memory = metrics.cached_tokens - metrics.disk_tokens
    tiers = {"memory": (in_memory, metrics.prompt_tokens - in_memory, cache.num_evicted)}
    if disk is not None:
        missed = metrics.prompt_tokens - metrics.cached_tokens
        tiers["disk"] = metrics.disk_tokens, missed, disk.store.num_evicted
    texts = (
        ("prefix_tier_hit_tokens", "Prompt tokens found, by tier."),
        ("prefix_tier_miss_tokens", "Prompt tokens not found, by tier."),
        ("prefix_tier_evicted_blocks", "Blocks evicted, by tier."),
    )
    yield from _labelled(model, "tier", tiers, texts)
    if disk is None:
        return
    store = disk.store
    size = store.num_blocks * store.block_bytes
    yield from _gauges(model, [("prefix_disk_bytes", "This model's blocks on disk.", size)])
    counters = (
        ("prefix_disk_written_blocks", "Blocks written to disk.", store.num_written),
        ("prefix_disk_damaged_blocks", "Blocks found damaged on disk, and dropped.", store.num_damaged),
        ("prefix_disk_write_errors", "Failures after which nothing is written for a time.", store.num_errors),
        ("prefix_disk_load_seconds", "Time in reading blocks from disk.", disk.load_seconds),
    )
    yield from _counters(model, counters)


def _draft_families(model: str, metrics: EngineMetrics) -> Iterator[Metric]:
    """What came of drafts, by proposer; a draft has one."""
    counts = {
        proposer: (num_drafts, num_drafted, num_accepted, num_drafted - num_accepted)
        for proposer, (num_drafts, num_drafted, num_accepted) in list(metrics.drafts.items())
    }
    texts = (
        ("spec_decode_num_drafts", "Drafts verified."),
        ("spec_decode_num_draft_tokens", "Draft tokens verified."),
        ("spec_decode_num_accepted_tokens", "Draft tokens accepted."),
        ("spec_decode_num_rejected_tokens", "Draft tokens that were not."),
    )
    yield from _labelled(model, "proposer", counts, texts)
    yield _histogram(
        "spec_decode_acceptance_length",
        "Tokens of a step that verified a draft, the bonus token included.",
        [_MODEL, "proposer"],
        [([model, proposer], counts) for proposer, counts in list(metrics.acceptance_length.items())],
    )


def _histograms(metrics: EngineMetrics) -> Sequence[tuple[str, str, Counts]]:
    return (
        ("time_to_first_token_seconds", "From submit to the first token.", metrics.first_token),
        (
            "inter_token_latency_seconds",
            "Between tokens of a request; those of one step share its time.",
            metrics.between_tokens,
        ),
        (
            "request_time_per_output_token_seconds",
            "A request's decode time over its tokens after the first step's.",
            metrics.per_token,
        ),
        ("e2e_request_latency_seconds", "From submit to the end.", metrics.total),
        ("request_queue_time_seconds", "From submit until it was let run.", metrics.queue),
        ("request_prefill_time_seconds", "From there to the first token.", metrics.prefill),
        ("request_decode_time_seconds", "From the first token to the last.", metrics.decode),
        ("request_inference_time_seconds", "Prefill and decode together.", metrics.inference),
        ("request_prompt_tokens", "Prompt tokens of a request that ended.", metrics.prompt_length),
        ("request_generation_tokens", "Tokens that it was answered with.", metrics.output_length),
    )


# --- Prometheus' objects --------------------------------------------------------------------------


def _gauges(model: str, values: _Values) -> Iterator[Metric]:
    for name, text, value in values:
        family = GaugeMetricFamily(PREFIX + name, text, labels=[_MODEL])
        family.add_metric([model], value)
        yield family


def _counters(model: str, values: _Values) -> Iterator[Metric]:
    for name, text, value in values:
        family = CounterMetricFamily(PREFIX + name, text, labels=[_MODEL])
        family.add_metric([model], value)
        yield family


def _labelled(
    model: str, label: str, rows: _Labelled, names: Sequence[tuple[str, str]]
) -> Iterator[CounterMetricFamily]:
    """Counters with one more label; a row's values are those of the families of `names`."""
    for index, (name, text) in enumerate(names):
        family = CounterMetricFamily(PREFIX + name, text, labels=[_MODEL, label])
        for value, row in list(rows.items()):  # the engine's thread may add some
            family.add_metric([model, value], row[index])
        yield family


def _histogram(
    name: str, text: str, labels: Sequence[str], rows: Sequence[tuple[Sequence[str], Counts]]
) -> Metric:
    """A histogram; each row has the values of the labels."""
    family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    for values, counts in rows:
        bounds = [*map(str, counts.bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(counts.counts)), strict=True))
        family.add_metric(values, buckets, counts.total)
    return family
