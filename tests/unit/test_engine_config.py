"""How the engine's settings are checked and chosen."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from engine_harness import null_spec
from outpace import config
from outpace.config import kv_bytes_per_block, resolve_engine_config
from outpace.errors import OutOfMemoryError, UsageError

SPEC = replace(null_spec(max_context=8192), num_layers=30, num_kv_heads=3, head_dim=64)
GIB = 1 << 30


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch):
    def have(num_bytes: int) -> None:
        monkeypatch.setattr(config, "available_memory", lambda: num_bytes)

    have(64 * GIB)
    return have


def test_bytes_of_a_block() -> None:
    assert kv_bytes_per_block(SPEC, "int8") == 30 * 3 * (2 * 64 * 32 + 2 * 4 * 32)
    assert kv_bytes_per_block(SPEC, "f16") == 30 * 3 * 2 * 2 * 64 * 32


def test_nothing_is_left_open(memory) -> None:
    resolved = resolve_engine_config(SPEC, {})
    assert 1 <= resolved.num_threads <= len(os.sched_getaffinity(0))
    assert resolved.max_context == 8192
    assert resolved.kv_cache_bytes == 4 * 8192 // 32 * kv_bytes_per_block(SPEC, "int8")


def test_a_long_context_gets_all_of_it(memory) -> None:
    resolved = resolve_engine_config(replace(SPEC, max_context=100_000), {})
    assert resolved.kv_cache_bytes == 3125 * kv_bytes_per_block(SPEC, "int8")


def test_at_most_a_quarter_of_free_memory(memory) -> None:
    memory(GIB)
    resolved = resolve_engine_config(SPEC, {"kv_format": "f16"})
    assert GIB // 4 - kv_bytes_per_block(SPEC, "f16") < resolved.kv_cache_bytes <= GIB // 4


def test_too_little_memory(memory) -> None:
    memory(1 << 20)
    with pytest.raises(OutOfMemoryError, match="1048576 bytes"):
        resolve_engine_config(SPEC, {})
    with pytest.raises(OutOfMemoryError, match="kv_cache_bytes is 2097152"):
        resolve_engine_config(SPEC, {"kv_cache_bytes": 2 << 20})
    with pytest.raises(OutOfMemoryError, match="one block"):
        resolve_engine_config(SPEC, {"kv_cache_bytes": 1000})


def test_what_is_given_stays(memory) -> None:
    options = {
        "backend": "null",
        "num_threads": 3,
        "max_context": 512,
        "kv_cache_bytes": 10 << 20,
        "max_num_seqs": 5,
        "draft": "off",
    }
    resolved = resolve_engine_config(SPEC, options)
    assert {name: getattr(resolved, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cuda"}, "backend must be one of native, torch, null"),
        ({"kv_format": "int3"}, "kv_format must be one of int8, f16"),
        ({"prefill": "slow"}, "prefill must be one of exact, fast"),
        ({"prefill": "fast", "backend": "torch"}, "prefill='fast' is of the native backend alone"),
        ({"max_num_seqs": 0}, "max_num_seqs must be a whole number from 1"),
        ({"max_batch_tokens": 1.5}, "max_batch_tokens must be a whole number"),
        ({"num_threads": True}, "num_threads must be a whole number"),
        ({"isa": 5}, "isa must be the name"),
        ({"prefix_cache": "no"}, "prefix_cache must be True or False"),
        ({"pin_threads": 1}, "pin_threads must be True or False"),
        ({"max_context": 9000}, "max_context is 9000, but the model's own limit is 8192"),
        ({"colour": "red"}, "colour is no option"),
    ],
)
def test_an_impossible_option_is_named(options: dict, message: str, memory) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_engine_config(SPEC, options)


def test_the_machine_is_read() -> None:
    assert config.available_memory() > 1 << 20
    assert config.default_threads() >= 1
