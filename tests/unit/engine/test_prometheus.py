"""The engine's figures as Prometheus' own parser reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engine_harness import Answers, collect, drain, make_engine, prompt_of, run
from oracle_drafter import OracleDrafter
from outpace.engine.engine import Engine
from outpace.engine.prometheus import registry_of
from outpace.types import SamplingParams

GREEDY = SamplingParams(temperature=0, ignore_eos=True, max_tokens=3)

VLLM_NAMES = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "prompt_tokens",
    "generation_tokens",
    "request_success",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "spec_decode_num_drafts",
    "spec_decode_num_draft_tokens",
    "spec_decode_num_accepted_tokens",
)
"""As vLLM 0.11's `v1/metrics/loggers.py` and `v1/spec_decode/metrics.py` have them after `vllm:`."""

Reader = Callable[..., float]


def page(**engines: Engine) -> str:
    registry = registry_of(lambda: {name: engine.metrics for name, engine in engines.items()})
    return generate_latest(registry).decode()


def read(text: str) -> Reader:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(name: str, **labels: str) -> float:
        found = [
            s.value for s in samples if s.name == f"outpace:{name}" and labels.items() <= s.labels.items()
        ]
        assert found, f"no sample {name} {labels}"
        return sum(found)

    return value


def test_counts() -> None:
    engine = make_engine()
    run(engine, {"a": prompt_of(70), "b": prompt_of(5)}, GREEDY)
    run(engine, {"a": prompt_of(70)}, GREEDY)
    value = read(page(m=engine))
    expected = {
        "prompt_tokens_total": 145,
        "prefix_cache_queries_total": 145,
        "prefix_cache_hits_total": 64,
        "generation_tokens_total": 9,
        "steps_total": 6,
        "kv_blocks_held": 0,
        "kv_cache_usage_perc": 0,
        "prefix_cache_blocks": 2,
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "time_to_first_token_seconds_count": 3,
        "inter_token_latency_seconds_count": 6,
        "request_time_per_output_token_seconds_count": 3,
        "e2e_request_latency_seconds_count": 3,
        "request_queue_time_seconds_count": 3,
        "request_prompt_tokens_sum": 145,
        "request_generation_tokens_sum": 9,
    }
    assert {name: value(name, model_name="m") for name in expected} == expected
    assert value("request_success_total", finished_reason="length") == 3
    assert value("request_success_total", finished_reason="error") == 0
    assert value("request_prompt_tokens_bucket", le="5.0") == 1
    assert value("request_prompt_tokens_bucket", le="100.0") == 3


def test_the_times_of_a_request_add_up() -> None:
    engine = make_engine()
    run(engine, {"a": prompt_of(70), "b": prompt_of(5)}, replace(GREEDY, max_tokens=8))
    value = read(page(m=engine))

    def seconds(name: str) -> float:
        return value(f"request_{name}_time_seconds_sum")

    assert min(seconds(name) for name in ("queue", "prefill", "decode")) > 0
    assert seconds("inference") == pytest.approx(seconds("prefill") + seconds("decode"))
    first = value("time_to_first_token_seconds_sum")
    assert first == pytest.approx(seconds("queue") + seconds("prefill"))
    assert value("e2e_request_latency_seconds_sum") >= first + seconds("decode")
    assert value("inter_token_latency_seconds_sum") == pytest.approx(seconds("decode"))
    per_token = value("request_time_per_output_token_seconds_sum")
    assert per_token == pytest.approx(seconds("decode") / 7), "two requests of eight tokens"


def test_drafts_are_counted() -> None:
    params, prompt = replace(GREEDY, max_tokens=21), prompt_of(10)
    plain = run(make_engine(), prompt, params)["r", 0].token_ids
    engine = make_engine(drafter=OracleDrafter({"r/0": [*prompt, *plain]}, "right", 256), max_draft_tokens=4)
    run(engine, prompt, params)
    value = read(page(m=engine))
    drafts, accepted = value("spec_decode_num_drafts_total"), value("spec_decode_num_accepted_tokens_total")
    assert drafts >= 4
    assert accepted == value("spec_decode_num_draft_tokens_total")
    assert value("spec_decode_num_rejected_tokens_total") == 0
    assert value("spec_decode_acceptance_length_sum") == drafts + accepted
    assert value("request_time_per_output_token_seconds_count") == 1


def test_drafts_of_several_proposers_are_told_apart() -> None:
    engine = make_engine()
    for proposer, num_drafted, num_accepted in (("a", 5, 5), ("b", 4, 1), ("b", 2, 0)):
        engine.metrics.draft(proposer, num_drafted, num_accepted)
    value = read(page(m=engine))
    for proposer, drafts, drafted, accepted in (("a", 1, 5, 5), ("b", 2, 6, 1)):
        counts = {
            "num_drafts_total": drafts,
            "num_draft_tokens_total": drafted,
            "num_accepted_tokens_total": accepted,
            "num_rejected_tokens_total": drafted - accepted,
            "acceptance_length_count": drafts,
            "acceptance_length_sum": accepted + drafts,
        }
        for name, count in counts.items():
            assert value(f"spec_decode_{name}", proposer=proposer, model_name="m") == count
    assert value("spec_decode_acceptance_length_bucket", proposer="b", le="1") == 1


def test_a_request_that_waits_and_one_that_never_ran() -> None:
    engine = make_engine(max_num_seqs=1)
    for name in ("runs", "waits"):
        engine.submit(prompt_of(40), GREEDY, name)
    answers: Answers = {}
    collect(answers, engine.step())
    value = read(page(m=engine))
    assert value("num_requests_running") == value("num_requests_waiting") == 1
    assert 0 < value("kv_cache_usage_perc") < 1
    assert value("kv_cache_usage_perc") == value("kv_blocks_held") / value("kv_blocks")
    engine.abort("waits")
    drain(engine, answers)
    value = read(page(m=engine))
    assert value("request_success_total", finished_reason="abort") == 1
    assert value("e2e_request_latency_seconds_count") == 2
    assert value("request_queue_time_seconds_count") == value("request_prefill_time_seconds_count") == 1


def test_engines_share_a_page_under_the_names_that_vllm_has() -> None:
    one, other = make_engine(), make_engine()
    run(one, prompt_of(7), GREEDY)
    run(other, prompt_of(9), GREEDY)
    text = page(one=one, other=other)
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(set(names)) == len(names), "one family for each name"
    assert {f"outpace:{name}" for name in VLLM_NAMES} <= set(names)
    assert all(name.startswith("outpace:") for name in names)
    assert all(sample.labels["model_name"] for family in families for sample in family.samples)
    value = read(text)
    assert value("prompt_tokens_total", model_name="one") == 7
    assert value("prompt_tokens_total", model_name="other") == 9


def test_a_model_may_have_any_name() -> None:
    name = 'a "b"\\c\nd'
    text = generate_latest(registry_of(lambda: {name: make_engine().metrics})).decode()
    found = {
        s.labels["model_name"] for family in text_string_to_metric_families(text) for s in family.samples
    }
    assert found == {name}
