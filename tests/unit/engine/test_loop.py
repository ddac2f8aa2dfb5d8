"""The step loop's thread and its streams, from threads and from asyncio."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from engine_harness import FailingBackend, make_engine, null_backend, prompt_of, run
from outpace.engine import loop as loop_module
from outpace.engine.loop import EngineLoop, RequestStream
from outpace.engine.output import join_deltas
from outpace.errors import (
    ContextLengthError,
    InvalidParameterError,
    OutpaceError,
    OverloadedError,
)
from outpace.types import Backend, FinishReason, SamplingParams, StepBatch, StepOutput, TokenDelta

GREEDY = SamplingParams(temperature=0, ignore_eos=True, max_tokens=20)
ENDLESS = SamplingParams(temperature=0, ignore_eos=True, max_tokens=None)
PROMPT = prompt_of(10)


class SlowBackend:
    """The null backend with a pause, so that something can happen while a request runs."""

    def __init__(self, seconds: float = 0.002) -> None:
        self.inner: Backend = null_backend(512)
        self.spec = self.inner.spec
        self.num_blocks = self.inner.num_blocks
        self.seconds = seconds

    def step(self, batch: StepBatch) -> StepOutput:
        time.sleep(self.seconds)
        return self.inner.step(batch)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def loop() -> Iterator[EngineLoop]:
    with EngineLoop(make_engine(SlowBackend())) as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> list[int]:
    return run(make_engine(), PROMPT, GREEDY)["r", 0].token_ids


def wait_idle(loop: EngineLoop) -> None:
    deadline = time.monotonic() + 5
    while loop.engine.has_work or loop.engine.pool.num_held:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_thread_reads_a_stream(loop: EngineLoop, plain: list[int]) -> None:
    stream = loop.submit(PROMPT, GREEDY, "mine")
    deltas = list(stream)
    assert stream.request_id == "mine"
    assert [token for delta in deltas for token in delta.token_ids] == plain
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    assert stream.finished
    assert stream.first_token_at is not None
    assert stream.finished_at is not None
    assert stream.submitted_at < stream.first_token_at < stream.finished_at
    assert list(stream) == [], "after the end there is nothing"


def test_a_task_reads_a_stream(loop: EngineLoop, plain: list[int]) -> None:
    async def read() -> list[int]:
        return [token async for delta in loop.submit(PROMPT, GREEDY) for token in delta.token_ids]

    assert asyncio.run(read()) == plain


def test_many_readers_at_once(loop: EngineLoop, plain: list[int]) -> None:
    async def read(delay: float) -> list[int]:
        await asyncio.sleep(delay)
        tokens: list[int] = []
        async for delta in loop.submit(PROMPT, GREEDY):
            tokens += delta.token_ids
            await asyncio.sleep(delay / 10)  # slow readers lose nothing
        return tokens

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(read(number * 0.002) for number in range(20)))

    assert asyncio.run(main()) == [plain] * 20
    wait_idle(loop)


def test_batches_join_what_comes_within_their_interval(loop: EngineLoop, plain: list[int]) -> None:
    interval = 0.03
    times: list[float] = []

    async def read() -> list[list[int]]:
        said: list[list[int]] = []
        async for batch in loop.submit(PROMPT, GREEDY).batches(interval):
            times.append(time.perf_counter())
            said.append([token for delta in batch for token in delta.token_ids])
        return said

    said = asyncio.run(read())
    assert [token for batch in said for token in batch] == plain
    assert len(said[0]) == 1, "the first token does not wait"
    assert 2 <= len(said) <= 8, "20 steps of 2 ms or more, in batches of 30 ms"
    gaps = [later - earlier for earlier, later in pairwise(times[:-1])]
    assert all(gap > 0.9 * interval for gap in gaps), "at most one batch in an interval, but for the end"


def test_batches_end_at_once(loop: EngineLoop, plain: list[int]) -> None:
    async def read() -> list[int]:
        batches = loop.submit(PROMPT, GREEDY).batches(60.0)
        return [token async for batch in batches for delta in batch for token in delta.token_ids]

    assert asyncio.run(asyncio.wait_for(read(), 30)) == plain


def test_batches_do_not_hold_back_slow_tokens(plain: list[int]) -> None:
    async def read(loop: EngineLoop) -> list[int]:
        return [len(batch) async for batch in loop.submit(PROMPT, GREEDY).batches(0.001)]

    with EngineLoop(make_engine(SlowBackend(0.02))) as loop:
        assert sum(size == 1 for size in asyncio.run(read(loop))) > len(plain) // 2


class Clock:
    """Goes on by so much each time that it is read."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def perf_counter(self) -> float:
        self.now += self.tick
        return self.now


@pytest.mark.parametrize("tick", [0.001, 0.004, 0.006, 0.009, 0.011, 0.02])
def test_a_batch_comes_whenever_the_clock_passes_its_time(
    tick: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read() -> list[str]:
        stream = RequestStream("r", SamplingParams(seed=1), 1, print)
        batches = stream.batches(0.01)
        said: list[str] = []
        for text in "abc":
            stream.push(TokenDelta("r", 0, (1,), text))
            said += [delta.text for delta in await asyncio.wait_for(anext(batches), 5)]
        return said

    monkeypatch.setattr(loop_module, "time", Clock(tick))
    assert asyncio.run(read()) == ["a", "b", "c"]


def test_joined_deltas_say_what_theirs_said(loop: EngineLoop) -> None:
    params = SamplingParams(temperature=1.5, seed=1, n=3, max_tokens=30, logprobs=2, ignore_eos=True)
    deltas = list(loop.submit(PROMPT, params))
    joined = join_deltas(deltas)
    assert {delta.index for delta in joined} == {0, 1, 2}
    for delta in joined:
        parts = [each for each in deltas if each.index == delta.index]
        assert delta.token_ids == tuple(token for each in parts for token in each.token_ids)
        assert delta.text == "".join(each.text for each in parts)
        assert [entry.token_id for entry in delta.logprobs] == list(delta.token_ids)
        assert (delta.finish_reason, delta.num_output_tokens) == (FinishReason.LENGTH, 30)


def test_what_was_said_before_a_failure_is_not_lost_with_it() -> None:
    engine = make_engine(FailingBackend(null_backend(), frozenset({5})))
    engine.submit(PROMPT, GREEDY, "r")
    deltas = [delta for _ in range(6) for delta in engine.step()]
    said, failure = join_deltas(deltas)
    assert (len(said.token_ids), said.finish_reason) == (5, None)
    assert (failure.token_ids, failure.finish_reason) == ((), FinishReason.ERROR)


def test_a_stream_with_choices_ends_after_the_last(loop: EngineLoop) -> None:
    params = SamplingParams(temperature=1.5, seed=1, n=3, max_tokens=30)
    ends = [delta.index for delta in loop.submit(PROMPT, params) if delta.finish_reason]
    assert sorted(ends) == [0, 1, 2]


def test_cancel_ends_a_stream_once(loop: EngineLoop) -> None:
    stream = loop.submit(PROMPT, ENDLESS)
    first = next(stream)
    assert first.finish_reason is None
    stream.cancel()
    stream.cancel()
    ends = [delta.finish_reason for delta in stream if delta.finish_reason]
    assert ends == [FinishReason.ABORT]
    stream.cancel()
    wait_idle(loop)


def test_cancel_while_it_waits(loop: EngineLoop) -> None:
    streams = [loop.submit(PROMPT, ENDLESS) for _ in range(70)]
    for stream in streams:
        stream.cancel()
    for stream in streams:
        assert [delta.finish_reason for delta in stream][-1] is FinishReason.ABORT
    wait_idle(loop)


def test_a_cancelled_task_leaves_the_stream_usable(loop: EngineLoop) -> None:
    async def main() -> FinishReason | None:
        stream = loop.submit(PROMPT, ENDLESS)
        await anext(stream)

        async def read_all() -> None:
            async for _ in stream:
                pass

        reader = asyncio.create_task(read_all())
        await asyncio.sleep(0.02)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        stream.cancel()
        last = None
        async for delta in stream:
            last = delta
        assert last is not None
        return last.finish_reason

    assert asyncio.run(main()) is FinishReason.ABORT
    wait_idle(loop)


def test_an_event_loop_that_closed_harms_nobody(loop: EngineLoop, plain: list[int]) -> None:
    stream = loop.submit(PROMPT, ENDLESS)

    async def wait_a_little() -> None:
        await anext(stream)
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(wait_a_little())
    assert [token for delta in loop.submit(PROMPT, GREEDY) for token in delta.token_ids] == plain
    stream.cancel()
    wait_idle(loop)


def test_errors_reach_the_submitter(loop: EngineLoop) -> None:
    with pytest.raises(InvalidParameterError, match="top_p"):
        loop.submit(PROMPT, SamplingParams(top_p=2))
    with pytest.raises(ContextLengthError):
        loop.submit(prompt_of(5000), GREEDY)
    stream = loop.submit(PROMPT, ENDLESS, "twice")
    with pytest.raises(InvalidParameterError, match="in use"):
        loop.submit(PROMPT, GREEDY, "twice")
    stream.cancel()
    list(stream)
    list(loop.submit(PROMPT, GREEDY, "twice"))  # free again as soon as its reader knows of the end


def test_a_full_queue_refuses_in_the_callers_thread() -> None:
    with EngineLoop(make_engine(SlowBackend(), max_num_seqs=1, max_waiting=2)) as loop:
        streams = [loop.submit(PROMPT, ENDLESS) for _ in range(3)]
        with pytest.raises(OverloadedError):
            loop.submit(PROMPT, GREEDY)
        for stream in streams:
            stream.cancel()
            list(stream)
        assert list(loop.submit(PROMPT, GREEDY))[-1].finish_reason is FinishReason.LENGTH


def test_close_ends_every_stream() -> None:
    loop = EngineLoop(make_engine(SlowBackend()))
    streams = [loop.submit(PROMPT, ENDLESS) for _ in range(3)]
    next(streams[0])
    loop.close()
    loop.close()
    for stream in streams:
        assert [delta.finish_reason for delta in stream][-1] is FinishReason.ABORT
    with pytest.raises(OutpaceError, match="closed"):
        loop.submit(PROMPT, GREEDY)
    assert loop.engine.pool.num_held == 0


def test_an_interrupted_close_still_waits_for_the_step() -> None:
    """An interpreter that ends while a thread is in native code aborts."""
    loop = EngineLoop(make_engine(SlowBackend(seconds=0.5)))
    loop.submit(PROMPT, ENDLESS)
    time.sleep(0.1)
    main = threading.main_thread().ident
    assert main is not None
    second = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    second.start()
    with pytest.raises(KeyboardInterrupt):
        loop.close()
    assert not loop.is_running
    assert not loop.engine.has_work  # its thread has ended what it does
    second.join()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_can_close_what_it_inherited(loop: EngineLoop) -> None:
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends it where it hangs
        ended = False
        try:
            loop.close()
            ended = not loop.is_running
        finally:
            os._exit(0 if ended else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert loop.is_running


def test_a_failed_step_is_told_and_the_loop_goes_on(
    plain: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.CRITICAL),
        EngineLoop(make_engine(FailingBackend(null_backend(), [2]))) as loop,
    ):
        last = list(loop.submit(PROMPT, GREEDY))[-1]
        assert last.finish_reason is FinishReason.ERROR
        assert last.error == "this step fails on purpose"
        assert [token for delta in loop.submit(PROMPT, GREEDY) for token in delta.token_ids] == plain


def test_a_defect_in_the_engine_leaves_nobody_waiting(
    plain: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL), EngineLoop(make_engine()) as loop:
        schedule, calls = loop.engine.scheduler.schedule, iter(range(1000))

        def broken() -> object:
            if next(calls) == 3:
                raise ZeroDivisionError("a defect")
            return schedule()

        monkeypatch.setattr(loop.engine.scheduler, "schedule", broken)
        last = list(loop.submit(PROMPT, GREEDY))[-1]
        assert last.finish_reason is FinishReason.ERROR
        assert last.error == "ZeroDivisionError: a defect"
        assert [token for delta in loop.submit(PROMPT, GREEDY) for token in delta.token_ids] == plain


def test_a_defect_beside_the_steps_leaves_nobody_waiting_either(
    loop: EngineLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise MemoryError("a defect")

    running = loop.submit(PROMPT, replace(ENDLESS, n=2))
    next(running)
    monkeypatch.setattr(loop.engine, "enqueue", broken)
    with caplog.at_level(logging.CRITICAL):
        new = loop.submit(PROMPT, GREEDY)
        for stream, indices in ((running, [0, 1]), (new, [0])):
            ends = [delta for delta in stream if delta.finish_reason]
            assert [end.index for end in ends] == indices
            assert {(end.finish_reason, end.error) for end in ends} == {
                (FinishReason.ERROR, "MemoryError: a defect")
            }
    with pytest.raises(OutpaceError, match="closed"):
        loop.submit(PROMPT, GREEDY)
    loop.close()
    assert not loop.is_running


def test_an_idle_loop_takes_no_cpu(loop: EngineLoop) -> None:
    list(loop.submit(PROMPT, GREEDY))
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.02


def test_random_disconnects_give_all_blocks_back(loop: EngineLoop, plain: list[int]) -> None:
    """Threads that submit, read a little and go."""
    right: list[bool] = []

    def visit(number: int) -> None:
        for turn in range(4):
            stream = loop.submit(PROMPT, GREEDY)
            tokens: list[int] = []
            for delta in stream:
                tokens += delta.token_ids
                if len(tokens) >= (number * 7 + turn * 5) % 25:
                    stream.cancel()
            right.append(tokens == plain[: len(tokens)])

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 64
    wait_idle(loop)
    loop.engine.pool.check()
