"""Who runs in a step, with how many rows; what gives way when the KV cache is full."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine_harness import WatchedBackend, collect, drain, make_engine, null_backend, prompt_of, run
from oracle_drafter import OracleDrafter
from outpace.types import FinishReason, SamplingParams

GREEDY = SamplingParams(temperature=0, ignore_eos=True, max_tokens=8)


def rows_by_step(engine) -> list[tuple[int, int]]:
    return engine.backend.batches


def test_a_long_prompt_is_cut_into_chunks_and_stalls_nobody() -> None:
    engine = make_engine(max_batch_tokens=16)
    engine.submit(prompt_of(4), replace(GREEDY, max_tokens=30), "short")
    engine.step()
    engine.submit(prompt_of(60, 1), GREEDY, "long")
    tokens: list[str] = []
    for _ in range(4):
        tokens += [delta.request_id for delta in engine.step()]
    # 60 prompt tokens at 15 rows a step beside the decode; the last of them yields the first token.
    assert rows_by_step(engine)[1:5] == [(2, 16)] * 4
    assert tokens == ["short"] * 4 + ["long"]


def test_several_prompts_share_a_step() -> None:
    engine = make_engine(max_batch_tokens=100)
    run(engine, {"a": prompt_of(10), "b": prompt_of(20), "c": prompt_of(30)}, replace(GREEDY, max_tokens=1))
    assert rows_by_step(engine) == [(3, 60)]


def test_max_num_seqs_makes_others_wait_in_order() -> None:
    engine = make_engine(max_num_seqs=2)
    for name in "abcd":
        engine.submit(prompt_of(5), GREEDY, name)
    ends: list[str] = []
    while engine.has_work:
        deltas = engine.step()
        assert len(engine.scheduler.running) <= 2
        ends += [delta.request_id for delta in deltas if delta.finish_reason]
    assert ends == ["a", "b", "c", "d"]


def test_who_waited_for_anothers_blocks_is_tried_though_one_behind_was_refused() -> None:
    """The second choice needs one block more than the first, which is there; the big one finds no room."""
    engine = make_engine(draft="off")
    engine.submit(prompt_of(20 * 32 + 5), replace(GREEDY, max_tokens=600, n=2), "choices")
    engine.submit(prompt_of(50 * 32, 9), GREEDY, "big")
    began = {(delta.request_id, delta.index) for _ in range(4) for delta in engine.step()}
    assert began == {("choices", 0), ("choices", 1)}


def test_a_full_kv_cache_preempts_the_youngest_and_loses_nothing() -> None:
    long = replace(GREEDY, max_tokens=60)
    prompts = {name: prompt_of(20, seed) for seed, name in enumerate("abc")}
    roomy = run(make_engine(), prompts, long)
    engine = make_engine(WatchedBackend(null_backend(5)), prefix_cache=False)
    answers = run(engine, prompts, long)
    assert engine.scheduler.num_preemptions > 0
    assert {key: answer.token_ids for key, answer in answers.items()} == {
        key: answer.token_ids for key, answer in roomy.items()
    }
    first_end = min(answers, key=lambda key: answers[key].last.num_output_tokens)
    assert first_end == ("a", 0)
    assert engine.pool.num_held == 0


def test_a_preempted_request_returns_before_newer_ones() -> None:
    engine = make_engine(WatchedBackend(null_backend(4)), prefix_cache=False)
    for number, name in enumerate("abc"):
        engine.submit(prompt_of(30, number), replace(GREEDY, max_tokens=60), name)
    ends: list[str] = []
    while engine.has_work:
        ends += [delta.request_id for delta in engine.step() if delta.finish_reason]
    assert ends == ["a", "b", "c"]


def test_admission_leaves_the_running_ones_room_to_grow() -> None:
    engine = make_engine(WatchedBackend(null_backend(4)), prefix_cache=False)
    engine.submit(prompt_of(30), replace(GREEDY, max_tokens=20), "grows")
    engine.submit(prompt_of(90), GREEDY, "takes three of the four blocks")
    ends = [answer.last.request_id for answer in drain(engine).values()]
    assert ends[0] == "grows"
    assert engine.scheduler.num_preemptions == 0


def test_the_whole_kv_cache_can_be_one_requests() -> None:
    engine = make_engine(WatchedBackend(null_backend(3)))
    answer = run(engine, prompt_of(40), replace(GREEDY, max_tokens=None))["r", 0]
    assert answer.finish_reason is FinishReason.LENGTH
    assert len(answer.token_ids) == 3 * 32 - 40


def test_the_first_in_the_queue_may_be_cancelled_while_it_does_not_fit() -> None:
    engine = make_engine(WatchedBackend(null_backend(4)), prefix_cache=False)
    engine.submit(prompt_of(40), replace(GREEDY, max_tokens=20), "runs")
    engine.step()
    engine.submit(prompt_of(90), GREEDY, "large")
    engine.step()
    engine.submit(prompt_of(10), replace(GREEDY, max_tokens=1), "small")
    engine.step()
    assert len(engine.scheduler.waiting) == 2, "the large one keeps its place"
    engine.abort("large")
    assert ("small", True) in [(delta.request_id, delta.finish_reason is not None) for delta in engine.step()]


def test_a_repeated_prompt_comes_from_the_prefix_cache() -> None:
    engine = make_engine()
    prompt = prompt_of(100)
    first = run(engine, prompt, GREEDY)["r", 0]
    rows = len(rows_by_step(engine))
    again = run(engine, prompt, GREEDY)["r", 0]
    assert again.token_ids == first.token_ids
    assert (first.last.num_cached_tokens, again.last.num_cached_tokens) == (0, 96)
    assert rows_by_step(engine)[rows] == (1, 4)


def test_the_answer_is_cached_for_the_next_turn() -> None:
    engine = make_engine()
    prompt = prompt_of(30)
    answer = run(engine, prompt, replace(GREEDY, max_tokens=40))["r", 0].token_ids
    follow = run(engine, [*prompt, *answer, 1, 2, 3], GREEDY)["r", 0]
    assert follow.last.num_cached_tokens == 64  # of 69 computed


def test_without_the_prefix_cache_nothing_is_shared() -> None:
    engine = make_engine(prefix_cache=False)
    for _ in range(2):
        assert run(engine, prompt_of(100), GREEDY)["r", 0].last.num_cached_tokens == 0


def test_choices_share_the_prompt_and_differ() -> None:
    engine = make_engine()
    params = SamplingParams(temperature=1.5, seed=3, n=4, max_tokens=10, ignore_eos=True)
    answers = run(engine, prompt_of(70), params)
    assert sorted(answers) == [("r", index) for index in range(4)]
    assert [answers["r", index].last.num_cached_tokens for index in range(4)] == [0, 64, 64, 64]
    assert len({tuple(answer.token_ids) for answer in answers.values()}) == 4
    # 70 rows for the first; 6 for each other.
    assert rows_by_step(engine)[:2] == [(1, 70), (4, 1 + 3 * 6)]


@pytest.mark.parametrize("end", ["abort", "fail"])
def test_choices_that_wait_for_the_first_are_not_forgotten(end: str) -> None:
    engine = make_engine(max_batch_tokens=16)
    engine.submit(prompt_of(70), SamplingParams(seed=3, n=3, max_tokens=4), "r")
    engine.step()
    engine.abort("r") if end == "abort" else None
    answers = {}
    collect(answers, engine.fail_all("broken") if end == "fail" else engine.step())
    assert {answer.finish_reason.value for answer in answers.values()} == {
        "abort" if end == "abort" else "error"
    }
    assert len(answers) == 3
    assert not engine.has_work
    assert engine.pool.num_held == 0


def drafted_run(mode: str, prompt: list[int], **config):
    plain = run(make_engine(), prompt, replace(GREEDY, max_tokens=40))["r", 0]
    drafter = OracleDrafter({"r/0": [*prompt, *plain.token_ids]}, mode, 256)
    engine = make_engine(drafter=drafter, **config)
    answer = run(engine, prompt, replace(GREEDY, max_tokens=40))["r", 0]
    assert answer.token_ids == plain.token_ids
    return engine, answer


def test_right_drafts_save_steps() -> None:
    engine, answer = drafted_run("right", prompt_of(20), max_draft_tokens=9)
    # The first token with the prompt, then three full drafts; the fourth stops where one token is left.
    assert rows_by_step(engine) == [(1, 20), (1, 10), (1, 10), (1, 10), (1, 9)]
    assert answer.last.num_accepted == answer.last.num_drafted == 35


def test_wrong_drafts_cost_no_tokens() -> None:
    engine, answer = drafted_run("wrong", prompt_of(20), max_draft_tokens=4)
    assert answer.last.num_accepted == 0
    assert answer.last.num_drafted > 100
    assert len(rows_by_step(engine)) == 40


def test_half_right_drafts_are_half_accepted() -> None:
    _, answer = drafted_run("half", prompt_of(20), max_draft_tokens=4)
    assert 0.4 < answer.last.num_accepted / answer.last.num_drafted < 0.7


def test_draft_off_asks_no_drafter() -> None:
    engine, answer = drafted_run("right", prompt_of(20), draft="off")
    assert answer.last.num_drafted == 0
    assert len(rows_by_step(engine)) == 40


def test_drafts_stay_within_the_budget_of_rows() -> None:
    prompts = {str(number): prompt_of(10, number) for number in range(3)}
    params = replace(GREEDY, max_tokens=30)
    plain = run(make_engine(), prompts, params)
    sequences = {f"{name}/0": [*prompts[name], *plain[name, 0].token_ids] for name in prompts}
    backend = WatchedBackend(null_backend())
    backend.max_rows = 11
    engine = make_engine(backend, drafter=OracleDrafter(sequences, "right", 256), max_batch_tokens=11)
    assert {key: answer.token_ids for key, answer in run(engine, prompts, params).items()} == {
        key: answer.token_ids for key, answer in plain.items()
    }
    assert (3, 11) in rows_by_step(engine), "8 draft rows, shared"
