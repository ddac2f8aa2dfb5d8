"""Deadlines: an answer ends with what there is of it, or says that there was no time for one."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from engine_harness import WatchedBackend, collect, drain, make_engine, null_backend, prompt_of, run
from outpace.engine.engine import Engine
from outpace.errors import OverloadedError
from outpace.types import DraftHints, FinishReason, SamplingParams, StepBatch, StepOutput

GREEDY = SamplingParams(temperature=0, ignore_eos=True, max_tokens=40)


class Slow(WatchedBackend):
    """Takes 4 ms for a step, and 1 ms for each further row."""

    def step(self, batch: StepBatch) -> StepOutput:
        time.sleep(0.003 + 0.001 * batch.num_rows)
        return super().step(batch)


def within(seconds: float) -> DraftHints:
    return DraftHints(deadline=time.perf_counter() + seconds)


def slow_engine(**config: int) -> Engine:
    return make_engine(Slow(null_backend()), max_batch_tokens=64, draft="off", **config)


def test_an_answer_ends_at_its_deadline_with_what_there_is() -> None:
    prompt = prompt_of(8)
    whole = run(make_engine(), prompt, replace(GREEDY, max_tokens=1000))["r", 0].token_ids
    engine = slow_engine()
    engine.submit(prompt, replace(GREEDY, max_tokens=1000), "r", within(0.25))
    start = time.perf_counter()
    answer = drain(engine)["r", 0]
    assert answer.finish_reason is FinishReason.LENGTH
    assert time.perf_counter() - start >= 0.2
    assert 1 <= len(answer.token_ids) < 100
    assert answer.token_ids == whole[: len(answer.token_ids)]
    assert engine.pool.num_held == 0


def test_a_deadline_that_passes_in_the_prompt_is_a_timeout() -> None:
    engine = slow_engine()
    engine.submit(prompt_of(600), GREEDY, "r", within(0.15))
    answers = drain(engine)
    assert answers["r", 0].finish_reason is FinishReason.TIMEOUT
    assert answers["r", 0].token_ids == []
    assert sum(rows for _, rows in engine.backend.batches) < 600
    assert engine.pool.num_held == 0


def test_a_waiting_request_times_out_and_others_go_on() -> None:
    engine = slow_engine(max_num_seqs=1)
    engine.submit(prompt_of(5), GREEDY, "first")
    engine.submit(prompt_of(5, 1), GREEDY, "late", within(0.02))
    engine.submit(prompt_of(5, 2), GREEDY, "patient", within(600))
    answers = drain(engine)
    assert answers["late", 0].finish_reason is FinishReason.TIMEOUT
    for name in ("first", "patient"):
        assert answers[name, 0].finish_reason is FinishReason.LENGTH
        assert len(answers[name, 0].token_ids) == 40


def test_what_cannot_be_read_in_time_is_not_begun() -> None:
    engine = slow_engine()
    run(engine, prompt_of(300), GREEDY)  # now it knows what a row takes
    before = len(engine.backend.batches)
    prompt = prompt_of(600, 1)
    engine.submit(prompt, GREEDY, "hopeless", within(0.2))
    answers = {}
    collect(answers, engine.step())
    assert answers["hopeless", 0].finish_reason is FinishReason.TIMEOUT
    assert "at the best" in (answers["hopeless", 0].error or "")
    assert len(engine.backend.batches) == before
    run(engine, {"read": prompt}, GREEDY)
    engine.submit(prompt, replace(GREEDY, max_tokens=2), "cached", within(0.2))
    assert drain(engine)["cached", 0].finish_reason is FinishReason.LENGTH, "a cached prompt takes no time"


def test_prompts_that_take_too_long_to_read_are_refused() -> None:
    engine = slow_engine(max_queue_seconds=1)
    engine.submit(prompt_of(900), GREEDY, "unknown")  # nothing is known of this machine yet
    engine.submit(prompt_of(900, 1), GREEDY, "too")
    drain(engine)
    engine.submit(prompt_of(900, 2), GREEDY, "a")
    engine.submit(prompt_of(900, 3), GREEDY, "b")
    with pytest.raises(OverloadedError, match="--max-queue-seconds") as caught:
        engine.submit(prompt_of(5, 4), GREEDY, "c")
    assert 0.2 < caught.value.retry_after < 5
    drain(engine)
    engine.submit(prompt_of(5, 4), GREEDY, "c")
    drain(engine)
