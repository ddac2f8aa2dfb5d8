"""Blocks that go last: within a bound, and for a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engine_harness import WatchedBackend, drain, make_engine, null_backend, prompt_of
from outpace.engine import eviction_order
from outpace.engine.prefix_cache import PrefixCache
from outpace.types import DraftHints, SamplingParams

GREEDY = SamplingParams(temperature=0, ignore_eos=True, max_tokens=4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is."""
    now = [1000.0]
    # Its own, and not everyone's: a server that runs beside would sleep for hours.
    monkeypatch.setattr(eviction_order, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def cache_of(num_blocks: int, max_pinned: int) -> PrefixCache:
    cache = PrefixCache(max_pinned)
    for block in range(num_blocks):
        cache.insert(b"%d" % block, block)
    return cache


def evicted(cache: PrefixCache) -> list[int]:
    blocks: list[int] = []
    while (block := cache.evict()) is not None:
        blocks.append(block)
    return blocks


def test_pinned_blocks_go_last(clock: list[float]) -> None:
    cache = cache_of(5, max_pinned=3)
    cache.pin([1, 0], 1300.0)
    for block in range(5):
        cache.release(block)
    assert cache.num_unused == 5
    assert evicted(cache) == [2, 3, 4, 0, 1]
    assert cache.num_pinned == 0


def test_until_their_time_is_over(clock: list[float]) -> None:
    cache = cache_of(5, max_pinned=5)
    cache.pin([0], 1300.0)
    cache.pin([1, 2], 4600.0)
    for block in range(5):
        cache.release(block)
    clock[0] = 1301.0
    assert evicted(cache) == [0, 3, 4, 1, 2]


def test_a_later_end_counts(clock: list[float]) -> None:
    cache = cache_of(3, max_pinned=3)
    cache.pin([0], 4600.0)
    cache.pin([0], 1300.0)
    cache.pin([1], 1300.0)
    for block in range(3):
        cache.release(block)
    clock[0] = 2000.0
    assert evicted(cache) == [1, 2, 0]
    cache.insert(b"0", 0)
    cache.pin([0], 2300.0)
    assert cache.num_pinned == 1


def test_the_bound(clock: list[float]) -> None:
    cache = cache_of(6, max_pinned=2)
    cache.pin([0, 1, 2], 1300.0)
    cache.pin([3], 1300.0)
    assert cache.num_pinned == 2
    for block in range(6):
        cache.release(block)
    assert evicted(cache) == [2, 3, 4, 5, 0, 1]


def test_a_block_that_comes_back_is_not_pinned(clock: list[float]) -> None:
    cache = cache_of(2, max_pinned=2)
    cache.pin([0], 1300.0)
    cache.release(0)
    assert cache.evict() == 0
    cache.insert(b"new", 0)
    for block in (0, 1):
        cache.release(block)
    assert evicted(cache) == [0, 1]


@pytest.mark.parametrize(("pin_seconds", "cached"), [(0.0, 0), (300.0, 96)])
def test_a_pinned_prompt_outlasts_others(pin_seconds: float, cached: int) -> None:
    engine = make_engine(WatchedBackend(null_backend(8)))
    engine.submit(prompt_of(100), GREEDY, "mine", DraftHints(pin_seconds=pin_seconds))
    drain(engine)
    for seed in range(1, 6):
        engine.submit(prompt_of(100, seed), GREEDY, "other")
        drain(engine)
    engine.submit(prompt_of(100), GREEDY, "mine")
    answer = drain(engine)["mine", 0]
    assert answer.last is not None
    assert answer.last.num_cached_tokens == cached
    engine.pool.check()


def test_pins_never_keep_a_request_waiting() -> None:
    engine = make_engine(WatchedBackend(null_backend(8)))
    for seed in range(3):
        engine.submit(prompt_of(100, seed), GREEDY, "pinned", DraftHints(pin_seconds=300.0))
        drain(engine)
    assert engine.pool.cache is not None
    assert engine.pool.cache.num_pinned == 4
    engine.submit(prompt_of(240, 9), GREEDY, "long")
    assert len(drain(engine)["long", 0].token_ids) == 4
