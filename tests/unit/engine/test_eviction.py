"""Which blocks leave memory: what nobody came back for, and of a prefix its end."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_harness import drain, make_engine, null_backend, prompt_of
from outpace.engine.block_pool import BlockPool
from outpace.engine.engine import Engine
from outpace.engine.prefix_cache import PrefixCache, extend_digests
from outpace.types import BLOCK_SIZE, DraftHints, SamplingParams

SEEDS = count(1000)


def ask(engine: Engine, prompt: list[int], *, n: int = 1, pin_seconds: float = 0.0) -> int:
    """How many of the prompt's tokens were cached."""
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=4, n=n)
    engine.submit(prompt, params, "r", DraftHints(pin_seconds=pin_seconds))
    answer = drain(engine)["r", 0]
    assert answer.last is not None
    engine.pool.check()
    return answer.last.num_cached_tokens


def flood(engine: Engine, num_prompts: int) -> None:
    """Prompts that nobody comes back to; six of them are more than 40 blocks hold."""
    for _ in range(num_prompts):
        assert ask(engine, prompt_of(200, next(SEEDS))) == 0


@pytest.mark.parametrize("users", [1, 2, 5])
def test_what_several_share_outlives_newer_prompts_that_came_once(users: int) -> None:
    engine = make_engine(null_backend(40))
    shared = prompt_of(256)
    for seed in range(users):
        ask(engine, shared + prompt_of(100, seed + 1))
    flood(engine, 20)
    assert ask(engine, shared + prompt_of(100, 99)) == (0 if users == 1 else 256)


def test_a_flood_leaves_a_session_alone_its_last_turn_included() -> None:
    engine = make_engine(null_backend(40))
    session = prompt_of(200)
    for turn in range(4):
        cached = ask(engine, session)
        assert cached == (0 if turn == 0 else (len(session) - 70) // BLOCK_SIZE * BLOCK_SIZE)
        flood(engine, 10)
        if turn == 0:  # nobody knew yet that it would be a session
            ask(engine, session)
        session = session + prompt_of(70, seed=500 + turn)


def test_the_choices_of_one_request_are_no_reuse() -> None:
    engine = make_engine(null_backend(40))
    prompt = prompt_of(250)
    ask(engine, prompt, n=4)
    flood(engine, 20)
    assert ask(engine, prompt) == 0


def test_sessions_that_are_over_make_room_for_those_that_are_not() -> None:
    """However often they were used."""
    engine = make_engine(null_backend(40))
    for _ in range(20):
        ask(engine, prompt_of(600))
    assert ask(engine, prompt_of(600)) == 576
    for _ in range(4):
        for seed in (1, 2, 3):
            ask(engine, prompt_of(350, seed))
    assert [ask(engine, prompt_of(350, seed)) for seed in (1, 2, 3)] == [320] * 3
    assert ask(engine, prompt_of(600)) < 576


def test_a_pin_that_is_over_is_no_disadvantage() -> None:
    engine = make_engine(null_backend(40))
    ask(engine, prompt_of(200, 1))
    ask(engine, prompt_of(200, 2), pin_seconds=1e-9)
    ask(engine, prompt_of(200, 3))
    flood(engine, 4)
    assert ask(engine, prompt_of(200, 2)) == 192
    assert ask(engine, prompt_of(200, 1)) < 192


class Prefixes:
    """Prompts as the scheduler handles them, over a pool of blocks; each is a path in a small tree."""

    def __init__(self, num_blocks: int) -> None:
        self.cache = PrefixCache(num_blocks // 2)
        self.pool = BlockPool(num_blocks, self.cache)
        self.parents: dict[bytes, bytes] = {}
        self.running: list[tuple[list[int], bool]] = []

    def begin(self, path: list[int], *, is_pinned: bool) -> None:
        digests: list[bytes] = []
        extend_digests(digests, np.repeat(np.array(path, np.int32), BLOCK_SIZE), len(path))
        self.parents.update(zip(digests[1:], digests, strict=False))
        blocks = self.cache.find(digests, len(digests))
        self.pool.share(blocks)
        if self.pool.num_free < len(digests) - len(blocks):
            self.pool.release(blocks)
            return
        continues = self.cache.reuse(blocks)
        for index in range(len(blocks), len(digests)):
            block = self.pool.allocate()
            assert block is not None
            after = digests[index - 1] if index else b""
            self.cache.insert(digests[index], block, after=after, proven=continues)
            blocks.append(block)
        self.running.append((blocks, is_pinned))

    def end(self, index: int) -> None:
        if self.running:
            blocks, is_pinned = self.running.pop(index % len(self.running))
            if is_pinned:
                self.cache.pin(blocks, 1e12)
            self.pool.release(blocks)

    def check(self) -> None:
        self.pool.check()
        for digest, parent in self.parents.items():
            if self.cache.block_of(digest) is not None:
                assert self.cache.block_of(parent) is not None, "a block outlives what it goes on from"


@settings(max_examples=300)
@given(
    num_blocks=st.integers(4, 14),
    events=st.lists(
        st.one_of(
            st.tuples(
                st.lists(st.integers(0, 2), min_size=1, max_size=7), st.sampled_from([False, False, True])
            ),
            st.integers(0, 5),
        ),
        max_size=40,
    ),
)
def test_no_block_outlives_what_it_goes_on_from(
    num_blocks: int, events: list[tuple[list[int], bool] | int]
) -> None:
    prefixes = Prefixes(num_blocks)
    for event in events:
        if isinstance(event, int):
            prefixes.end(event)
        else:
            prefixes.begin(event[0], is_pinned=event[1])
        prefixes.check()
    while prefixes.running:
        prefixes.end(0)
        prefixes.check()
    assert prefixes.pool.num_held == 0
    while prefixes.pool.allocate() is not None:
        prefixes.check()
