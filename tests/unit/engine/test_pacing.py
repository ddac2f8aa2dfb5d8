"""A long prompt never stalls a stream for longer than the bound, and gets on all the same."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from engine_harness import WatchedBackend, collect, drain, make_engine, null_backend, prompt_of
from outpace.engine.pacing import Pacing
from outpace.types import SamplingParams, StepBatch, StepOutput

GREEDY = SamplingParams(temperature=0, ignore_eos=True, max_tokens=4)


def cost(rows: int, context: int) -> float:
    """A machine's: 10 ms for the weights, and rows that are dearer the more they see."""
    return 0.010 + rows * (0.0007 + context * 1e-7)


@pytest.mark.parametrize("slower", [1.0, 5.0])
def test_the_bound_holds_as_the_context_grows_and_little_of_it_is_left_unused(slower: float) -> None:
    pacing = Pacing(0.25)
    pacing.observe([(40, 40)], slower * cost(40, 40))
    pacing.observe([], slower * 0.010)
    computed, times = 0, []
    while computed < 16_000:
        rows = min(512, pacing.max_rows(computed + 512))
        computed += rows
        times.append(slower * cost(rows, computed))
        pacing.observe([(rows, computed)], times[-1])
    assert max(times) <= 0.25
    assert sorted(times)[len(times) // 2] > 0.1


def test_a_machine_that_becomes_slow_is_followed_within_two_steps() -> None:
    pacing = Pacing(0.25)
    for factor in (1.0, 1.0, 8.0, 8.0):
        rows = min(512, pacing.max_rows(512))
        pacing.observe([(rows, 512)], factor * cost(rows, 512))
    assert 8.0 * cost(pacing.max_rows(512), 512) <= 0.25


def test_small_chunks_beyond_the_bound_count_too() -> None:
    pacing = Pacing(0.1)
    pacing.observe([(64, 64)], 0.32)  # 5 ms a row: 16 rows
    assert pacing.max_rows(64) == 16
    pacing.observe([(16, 64)], 0.16)
    assert pacing.max_rows(64) == 8


def test_a_few_rows_say_little_of_what_a_row_costs() -> None:
    pacing = Pacing(0.25)
    pacing.observe([(200, 200)], 0.2)
    before = pacing.max_rows(200)
    pacing.observe([(2, 200)], 0.02)
    assert pacing.max_rows(200) == before


def test_a_short_prompt_beside_streams_does_not_look_free() -> None:
    pacing = Pacing(0.25)
    for _ in range(20):
        pacing.observe([], 0.050)
    pacing.observe([(512, 512)], 1.0)
    pacing.observe([(6, 700)], 0.0499)  # as long as without them
    pacing.observe([(6, 700)], 0.0506)
    assert pacing.row_seconds == pytest.approx(0.95 / 512)
    assert pacing.least_seconds(0, 512) == pytest.approx(0.95)


def test_a_short_prompt_alone_says_nothing_of_long_ones() -> None:
    """What is read of it are the weights."""
    pacing = Pacing(0.25)
    pacing.observe([(2, 2)], 0.050)
    assert pacing.least_seconds(0, 8000) == 0.0
    pacing.observe([], 0.050)
    pacing.observe([(100, 100)], 0.060)
    assert 0.010 < pacing.least_seconds(0, 100) <= 0.060


def test_the_best_speed_is_that_of_today() -> None:
    pacing = Pacing(0.25)
    pacing.observe([], 0.050)
    for seconds in (0.5, 1.0):
        for _ in range(100):
            pacing.observe([(512, 512)], 0.050 + seconds)
        assert pacing.least_seconds(0, 512) == pytest.approx(seconds)
        pacing.observe([(512, 512)], 1.5)
        assert pacing.least_seconds(0, 512) == pytest.approx(seconds, rel=0.02), (
            "one slow step is not the machine"
        )


class SlowRows(WatchedBackend):
    """Takes at least 2 ms for each row."""

    def step(self, batch: StepBatch) -> StepOutput:
        time.sleep(0.002 * batch.num_rows)
        return super().step(batch)


def test_a_prompt_beside_a_stream_takes_small_steps_and_alone_full_ones() -> None:
    engine = make_engine(SlowRows(null_backend()), max_batch_tokens=256, max_stall_ms=100)
    engine.submit(prompt_of(200), GREEDY, "alone")
    drain(engine)
    assert engine.backend.batches[0] == (1, 200)
    engine.submit(prompt_of(3, 1), replace(GREEDY, max_tokens=100), "stream")
    answers = {}
    collect(answers, engine.step())
    engine.submit(prompt_of(200, 2), GREEDY, "prompt")
    before = len(engine.backend.batches)
    drain(engine, answers)
    beside = [rows for requests, rows in engine.backend.batches[before:] if requests == 2]
    assert max(beside) <= 1 + 50, "of 2 ms each, 50 fit into 100 ms"
    assert sum(beside) >= 200


def test_without_a_bound_the_prompt_takes_all_there_is() -> None:
    engine = make_engine(SlowRows(null_backend()), max_batch_tokens=128, max_stall_ms=0)
    engine.submit(prompt_of(3), replace(GREEDY, max_tokens=10), "stream")
    engine.step()
    engine.submit(prompt_of(127, 1), GREEDY, "prompt")
    engine.step()
    assert engine.backend.batches[-1] == (2, 128)
