"""Clients share the engine fairly, and equal prompts are computed once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_harness import collect, drain, make_engine, null_backend, prompt_of
from outpace.engine import engine as engine_module
from outpace.engine import request as request_module
from outpace.engine.fair_queue import share_rows
from outpace.engine.prefix_cache import extend_digests
from outpace.types import BLOCK_SIZE, DraftHints, FinishReason, Int32Array, Lane, SamplingParams

GREEDY = SamplingParams(temperature=0, ignore_eos=True, max_tokens=1)


def order_of_ends(engine) -> list[str]:
    ends: list[str] = []
    while engine.has_work:
        ends += [delta.request_id for delta in engine.step() if delta.finish_reason]
    return ends


def test_one_request_does_not_wait_for_another_clients_fifty() -> None:
    engine = make_engine(max_num_seqs=2)
    for number in range(50):
        engine.submit(prompt_of(20, number), GREEDY, f"many-{number}", DraftHints("a"))
    engine.submit(prompt_of(20, 99), GREEDY, "one", DraftHints("b"))
    ends = order_of_ends(engine)
    assert ends.index("one") <= 2
    assert [name for name in ends if name != "one"] == [f"many-{number}" for number in range(50)]


def test_clients_of_the_past_are_forgotten_though_somebody_always_waits() -> None:
    engine = make_engine(max_num_seqs=1)
    for number in range(1000):
        engine.submit([1, 2, 3], GREEDY, f"r{number}", DraftHints(f"client {number}"))
        if number:
            engine.step()
            assert engine.scheduler.waiting
    assert len(engine.scheduler.waiting._last_tags) <= 64


def test_lanes_pass_each_other_and_nobody_starves() -> None:
    engine = make_engine(max_num_seqs=1)
    for lane in ("flex", "default", "priority"):
        for number in range(8):
            engine.submit(prompt_of(20, number), GREEDY, f"{lane}-{number}", DraftHints("a", lane=lane))
    ends = order_of_ends(engine)
    at = {name: place for place, name in enumerate(ends)}
    assert at["priority-0"] <= 1, "one may run already"
    assert at["priority-3"] < at["default-1"] < at["priority-7"]
    assert at["default-3"] < at["flex-1"]
    assert at["flex-0"] < at["default-7"], "flex is not last of all"
    for lane in ("flex", "default", "priority"):
        assert [name for name in ends if name.startswith(lane)] == [f"{lane}-{i}" for i in range(8)]


def test_a_prompt_of_a_better_lane_passes_one_that_is_being_read() -> None:
    """By its lane's weight, also of the same client; the other one goes on."""
    cases: list[tuple[str, tuple[Lane, Lane], int, int]] = [
        ("a", ("flex", "priority"), 18, 3),
        ("b", ("flex", "priority"), 18, 3),
        ("a", ("default", "priority"), 21, 10),
        ("a", ("flex", "default"), 21, 10),
        ("b", ("default", "default"), 33, 30),
    ]
    for client, lanes, most_steps, least_rows in cases:
        engine = make_engine(null_backend(200), max_batch_tokens=64)
        engine.submit(prompt_of(3000), GREEDY, "first", DraftHints("a", lane=lanes[0]))
        engine.step()
        (running,) = engine.scheduler.running
        engine.submit(prompt_of(1000, 1), GREEDY, "second", DraftHints(client, lane=lanes[1]))
        steps = 0
        ended = False
        while not ended:
            before = running.num_computed_tokens
            ended = any(delta.request_id == "second" for delta in engine.step())
            steps += 1
            assert running.num_computed_tokens - before >= least_rows
        assert steps <= most_steps
        drain(engine)
        engine.pool.check()


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from(["priority", "default", "flex"]), st.integers(1, 99)
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 120),
)
def test_rows_are_shared_out_and_nobody_gets_more_than_it_needs(
    prompts: list[tuple[str, Lane, int]], budget: int
) -> None:
    engine = make_engine()
    requests = [
        engine.prepare(prompt_of(tokens), GREEDY, str(i), DraftHints(client, lane=lane))[0]
        for i, (client, lane, tokens) in enumerate(prompts)
    ]
    rows = share_rows(requests, budget)
    assert all(0 <= given <= tokens for given, (_, _, tokens) in zip(rows, prompts, strict=True))
    assert sum(rows) == min(budget, sum(tokens for _, _, tokens in prompts))


def test_a_client_with_long_prompts_is_served_in_spite_of_many_clients_with_short_ones() -> None:
    engine = make_engine(max_num_seqs=1)
    engine.submit(prompt_of(200), GREEDY, "long", DraftHints("long"))
    served = 0
    for number in range(1000):  # somebody new comes in every step
        engine.submit(prompt_of(10, number + 1), GREEDY, str(number), DraftHints(str(number)))
        if any(delta.request_id == "long" for delta in engine.step()):
            break
        served += 1
    assert served <= 20, "200 tokens of others' work, 10 a request"
    drain(engine)


def test_prompts_of_two_clients_share_each_step() -> None:
    engine = make_engine(null_backend(200), max_batch_tokens=64)
    engine.submit(prompt_of(2000), GREEDY, "long", DraftHints("a"))
    engine.step()
    engine.submit(prompt_of(60, 1), GREEDY, "short", DraftHints("b"))
    ends: list[str] = []
    for _ in range(2):  # 32 rows each
        ends += [delta.request_id for delta in engine.step() if delta.finish_reason]
    assert ends == ["short"]
    drain(engine)


def test_an_equal_prompt_waits_for_the_one_that_is_computed_just_now() -> None:
    engine = make_engine(max_batch_tokens=64)
    prompt = prompt_of(300)
    engine.submit(prompt, GREEDY, "first", DraftHints("a"))
    engine.step()
    for number in range(3):
        engine.submit(prompt, GREEDY, f"again-{number}", DraftHints(str(number)))
    answers = drain(engine)
    rows = sum(rows for _, rows in engine.backend.batches)
    assert rows == 300 + 3 * (300 - 288), "only what fills no block is computed again"
    assert [answers[f"again-{number}", 0].last.num_cached_tokens for number in range(3)] == [288] * 3


def test_the_choices_of_a_prompt_hash_it_once_and_no_step_does(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counted(digests: list[bytes], token_ids: Int32Array, num_blocks: int, scope: bytes = b"") -> None:
        hashed.append(num_blocks - len(digests))
        extend_digests(digests, token_ids, num_blocks, scope)

    for module in (engine_module, request_module):
        monkeypatch.setattr(module, "extend_digests", counted)
    engine = make_engine()
    engine.submit(prompt_of(600), replace(GREEDY, n=8, max_tokens=2), "choices")
    assert hashed == [600 // BLOCK_SIZE]
    drain(engine)
    assert hashed == [600 // BLOCK_SIZE]


def test_a_common_beginning_is_computed_once_and_others_go_past_who_waits() -> None:
    engine = make_engine(max_batch_tokens=64)
    common = prompt_of(256)
    engine.submit([*common, *prompt_of(64, 1)], GREEDY, "first")
    engine.step()
    engine.submit([*common, *prompt_of(64, 2)], GREEDY, "second")
    engine.submit(prompt_of(40, 3), GREEDY, "other", DraftHints("b"))
    assert order_of_ends(engine) == ["other", "first", "second"]
    assert sum(rows for _, rows in engine.backend.batches) == 256 + 64 + 64 + 40


def test_who_waits_takes_over_where_the_first_is_cancelled() -> None:
    engine = make_engine(max_batch_tokens=64)
    prompt = prompt_of(300)
    engine.submit(prompt, GREEDY, "first")
    engine.step()
    engine.submit(prompt, replace(GREEDY, max_tokens=3), "again")
    engine.step()
    engine.abort("first")
    answers = {}
    collect(answers, engine.step())
    assert answers["first", 0].finish_reason is FinishReason.ABORT, "within one step"
    drain(engine, answers)
    assert answers["again", 0].last.num_cached_tokens == 128, "what two steps computed is kept"
    assert sum(rows for _, rows in engine.backend.batches) == 300 + 2
    assert engine.pool.num_held == 0


def test_scopes_that_share_no_prefixes_wait_for_nobody() -> None:
    engine = make_engine(max_batch_tokens=64, prefix_sharing="scope")
    for scope in "ab":
        engine.submit(prompt_of(100), GREEDY, scope, DraftHints(scope))
    drain(engine)
    assert sum(rows for _, rows in engine.backend.batches) == 200
