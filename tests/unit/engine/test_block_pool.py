"""Reference counts, the prefix cache and the order of eviction."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from outpace.engine.block_pool import BlockPool
from outpace.engine.prefix_cache import PrefixCache, extend_digests
from outpace.types import BLOCK_SIZE


def take(pool: BlockPool, count: int) -> list[int]:
    blocks = [pool.allocate() for _ in range(count)]
    assert None not in blocks
    return blocks


def test_gives_each_block_once_and_then_none() -> None:
    pool = BlockPool(3)
    blocks = take(pool, 3)
    assert sorted(blocks) == [0, 1, 2]
    assert pool.allocate() is None
    pool.release(blocks[:1])
    assert pool.num_free == 1
    assert pool.allocate() == blocks[0]


def test_a_cached_block_survives_its_holders_until_it_is_needed() -> None:
    cache = PrefixCache()
    pool = BlockPool(3, cache)
    blocks = take(pool, 2)
    cache.insert(b"first", blocks[0])
    cache.insert(b"second", blocks[1])
    pool.release(blocks)
    assert pool.num_held == 0
    assert pool.num_free == 3
    assert cache.find([b"first", b"second", b"third"], 3) == blocks
    assert cache.find([b"first", b"second"], 1) == blocks[:1]
    take(pool, 2)  # the third block, and then the end of the prefix, released first
    assert cache.find([b"first", b"second"], 2) == blocks[:1]
    take(pool, 1)
    assert cache.find([b"first"], 1) == []
    assert len(cache) == 0


def test_a_shared_block_is_not_evicted() -> None:
    cache = PrefixCache()
    pool = BlockPool(2, cache)
    (block,) = take(pool, 1)
    cache.insert(b"x", block)
    pool.share([block])
    pool.release([block])
    assert pool.num_held == 1
    assert pool.allocate() != block
    assert pool.allocate() is None
    pool.release([block])
    assert pool.allocate() == block


def test_use_renews() -> None:
    cache = PrefixCache()
    pool = BlockPool(2, cache)
    first, second = take(pool, 2)
    cache.insert(b"1", first)
    cache.insert(b"2", second)
    pool.release([first])
    pool.release([second])
    pool.share([first])  # used again
    pool.release([first])
    assert pool.allocate() == second


def test_a_known_prefix_keeps_its_block() -> None:
    cache = PrefixCache()
    pool = BlockPool(2, cache)
    first, second = take(pool, 2)
    cache.insert(b"same", first)
    cache.insert(b"same", second)
    assert cache.find([b"same"], 1) == [first]
    pool.release([first, second])
    pool.check()
    assert pool.num_free == 2
    assert cache.num_unused == 1


@given(st.lists(st.integers(0, 2), min_size=2 * BLOCK_SIZE, max_size=5 * BLOCK_SIZE), st.data())
def test_a_digest_stands_for_the_whole_prefix(tokens: list[int], data: st.DataObject) -> None:
    blocks = len(tokens) // BLOCK_SIZE
    changed = data.draw(st.integers(0, blocks * BLOCK_SIZE - 1))
    other = tokens.copy()
    other[changed] += 1
    ours: list[bytes] = []
    theirs: list[bytes] = []
    extend_digests(ours, np.array(tokens, np.int32), blocks)
    extend_digests(theirs, np.array(other, np.int32), blocks)
    same = [a == b for a, b in zip(ours, theirs, strict=True)]
    assert same == [index < changed // BLOCK_SIZE for index in range(blocks)]
    assert len(set(ours)) == blocks, "equal blocks at different places differ"
