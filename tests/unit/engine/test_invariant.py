"""Any schedule gives the same tokens as one request alone, without drafts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from engine_harness import BackendFactory, byte_tokenizer, null_backend, with_blocks
from invariant import Scenario, check_invariant, scenarios
from outpace import backends
from outpace._native import available_isas, has_fast_prefill
from outpace.config import EngineOptions, resolve_engine_config
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.text.tokenizer import Tokenizer
from tiny_checkpoint import TinyFactory

relaxed = settings(
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)


@settings(relaxed, max_examples=100)
@given(scenario=scenarios(vocab_size=256))
def test_no_schedule_changes_an_answer(scenario: Scenario) -> None:
    check_invariant(null_backend, byte_tokenizer(), scenario)


@settings(relaxed, max_examples=60)
@given(scenario=scenarios(vocab_size=256, disk=True))
def test_nor_does_a_tier_on_disk(scenario: Scenario) -> None:
    check_invariant(null_backend, byte_tokenizer(), scenario)


# Every tier that this machine has, with a group format and a K format.
NATIVE = [
    ("auto", "qwen2", "Q8_0", "f16"),
    *((isa, "qwen2", "Q8_0", "int8") for isa in available_isas()),
    *((isa, "qwen2-k", "Q4_K", "int8") for isa in available_isas()),
]


def loaded(path: Path, options: EngineOptions) -> Iterator[BackendFactory]:
    checkpoint = open_checkpoint(path)
    config = resolve_engine_config(checkpoint.spec, {"kv_cache_bytes": 4 << 20, **options})
    backend = backends.create(checkpoint, config)
    yield with_blocks(backend)
    backend.close()


@pytest.fixture(scope="module", params=NATIVE, ids="-".join)
def native_tiny(request: pytest.FixtureRequest, tiny_checkpoint: TinyFactory) -> Iterator[BackendFactory]:
    """The native core over a tiny random model; one backend for all, so its KV cache is never clean."""
    isa, variant, dtype, kv_format = request.param
    yield from loaded(tiny_checkpoint(variant, dtype=dtype).path, {"isa": isa, "kv_format": kv_format})


@settings(relaxed, max_examples=15)
@given(scenario=scenarios(vocab_size=512, max_requests=4, max_tokens=40))
def test_nor_one_of_the_native_core(native_tiny: BackendFactory, scenario: Scenario) -> None:
    check_invariant(native_tiny, byte_tokenizer(512), scenario)


@settings(relaxed, max_examples=12)
@given(scenario=scenarios(vocab_size=512, max_requests=4, max_tokens=40, disk=True))
def test_nor_blocks_of_the_native_core_that_come_from_disk(
    native_tiny: BackendFactory, scenario: Scenario
) -> None:
    check_invariant(native_tiny, byte_tokenizer(512), scenario)


@pytest.fixture(scope="module")
def fast_tiny(tiny_checkpoint: TinyFactory) -> Iterator[BackendFactory]:
    if not has_fast_prefill("auto"):
        pytest.skip("prefill='fast' needs AMX")
    yield from loaded(tiny_checkpoint("qwen2", dtype="Q8_0").path, {"prefill": "fast"})


@settings(relaxed, max_examples=15)
@given(scenario=scenarios(vocab_size=512, max_requests=4, max_tokens=40))
def test_nor_one_with_prompts_in_bf16(fast_tiny: BackendFactory, scenario: Scenario) -> None:
    """Without the prefix cache: a prompt may find what another request generated, which is not rounded."""
    check_invariant(fast_tiny, byte_tokenizer(512), replace(scenario, prefix_cache=False))


@pytest.fixture(scope="module")
def default_model(model_135m: Path) -> Iterator[tuple[Checkpoint, BackendFactory]]:
    checkpoint = open_checkpoint(model_135m)
    config = resolve_engine_config(checkpoint.spec, {"kv_cache_bytes": 32 << 20})
    backend = backends.create(checkpoint, config)
    yield checkpoint, with_blocks(backend)
    backend.close()


@settings(relaxed, max_examples=4)
@given(scenario=scenarios(vocab_size=49152, max_requests=4, max_tokens=16))
def test_nor_one_of_a_real_model(
    default_model: tuple[Checkpoint, BackendFactory], scenario: Scenario
) -> None:
    checkpoint, factory = default_model
    check_invariant(factory, Tokenizer.from_checkpoint(checkpoint), scenario)
