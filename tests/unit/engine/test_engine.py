"""Requests from submit to their one end: limits, stops, failures, cancellation, figures."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from engine_harness import (
    FailingBackend,
    byte_tokenizer,
    collect,
    drain,
    make_engine,
    null_backend,
    prompt_of,
    run,
)
from oracle_drafter import OracleDrafter
from outpace.errors import ContextLengthError, InvalidParameterError, OutOfMemoryError, OverloadedError
from outpace.types import FinishReason, SamplingParams

GREEDY = SamplingParams(temperature=0, ignore_eos=True, max_tokens=40)
PROMPT = prompt_of(10)


@pytest.fixture(scope="module")
def plain() -> list[int]:
    """What greedy decoding gives for PROMPT."""
    return run(make_engine(), PROMPT, GREEDY)["r", 0].token_ids


def with_drafts(tokens: list[int], drafts: bool):
    return OracleDrafter({"r/0": [*PROMPT, *tokens]}, "right", 256) if drafts else None


drafts = pytest.mark.parametrize("drafts", [False, True], ids=["plain", "drafts"])


@drafts
def test_max_tokens(plain: list[int], drafts: bool) -> None:
    for count in (1, 2, 7):
        engine = make_engine(drafter=with_drafts(plain, drafts))
        answer = run(engine, PROMPT, replace(GREEDY, max_tokens=count))["r", 0]
        assert answer.token_ids == plain[:count]
        assert answer.finish_reason is FinishReason.LENGTH


@drafts
def test_the_context_ends_an_answer(drafts: bool, plain: list[int]) -> None:
    engine = make_engine(max_context=16, drafter=with_drafts(plain, drafts))
    answer = run(engine, PROMPT, replace(GREEDY, max_tokens=None))["r", 0]
    assert answer.token_ids == plain[:6]
    assert answer.finish_reason is FinishReason.LENGTH


@drafts
def test_a_stop_id_ends_an_answer_and_has_no_text(drafts: bool, plain: list[int]) -> None:
    stop = plain[9]
    end = plain.index(stop)
    engine = make_engine(drafter=with_drafts(plain, drafts))
    answer = run(engine, PROMPT, replace(GREEDY, stop_token_ids=(stop,)))["r", 0]
    assert answer.finish_reason is FinishReason.STOP
    assert answer.last.stop is None
    assert answer.token_ids == plain[: end + 1]
    assert answer.text == byte_tokenizer().decode(plain[:end])
    assert engine.pool.num_held == 0


def test_an_eos_token_ends_an_answer_unless_it_is_ignored() -> None:
    params = SamplingParams(temperature=0, logit_bias={0: 100.0}, max_tokens=5)
    answer = run(make_engine(), PROMPT, params)["r", 0]
    assert (answer.token_ids, answer.text, answer.finish_reason) == ([0], "", FinishReason.STOP)
    answer = run(make_engine(), PROMPT, replace(params, ignore_eos=True))["r", 0]
    assert (answer.token_ids, answer.finish_reason) == ([0] * 5, FinishReason.LENGTH)


@drafts
def test_a_stop_string_over_several_tokens(drafts: bool) -> None:
    """The stop string and what follows it is dropped, whatever a draft had accepted."""
    tokens = list(b"one two\nthree")
    engine = make_engine(_Script(tokens), drafter=with_drafts(tokens, drafts))
    answer = run(engine, PROMPT, replace(GREEDY, stop=("o\nt", "zzz"), max_tokens=30))["r", 0]
    assert answer.text == "one tw"
    assert answer.finish_reason is FinishReason.STOP
    assert answer.last.stop == "o\nt"
    assert bytes(answer.token_ids) == b"one two\nt"


class _Script:
    """The null backend, but it answers PROMPT with given tokens, again and again; drafts are verified."""

    def __init__(self, tokens: list[int]) -> None:
        self.inner = null_backend()
        self.tokens = tokens
        self.spec = self.inner.spec
        self.num_blocks = self.inner.num_blocks

    def step(self, batch):
        out = self.inner.step(batch)
        for i in range(batch.num_requests):
            end, drafts = int(batch.row_start[i + 1]), int(batch.num_draft_tokens[i])
            rows = end - int(batch.row_start[i])
            position = int(batch.num_computed_tokens[i]) + rows - drafts - len(PROMPT)
            right = [self.tokens[(position + k) % len(self.tokens)] for k in range(drafts + 1)]
            accepted = 0
            while accepted < drafts and batch.token_ids[end - drafts + accepted] == right[accepted]:
                accepted += 1
            out.num_accepted[i] = accepted
            out.token_ids[i, : accepted + 1] = right[: accepted + 1]
        return out

    def close(self) -> None:
        self.inner.close()


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    engine = make_engine(_Script(list(b"abcST")))
    answer = run(engine, PROMPT, replace(GREEDY, stop=("STOP",), max_tokens=5))["r", 0]
    assert answer.text == "abcST"
    assert answer.finish_reason is FinishReason.LENGTH
    engine.submit(PROMPT, replace(GREEDY, stop=("STOP",)), "r")
    answers = {}
    for _ in range(5):
        collect(answers, engine.step())
    assert answers["r", 0].text == "abc"
    engine.abort("r")
    collect(answers, engine.step())
    assert answers["r", 0].text == "abcST"
    assert answers["r", 0].finish_reason is FinishReason.ABORT


def test_characters_come_whole() -> None:
    engine = make_engine(_Script(list("é🙂x".encode())))
    engine.submit(PROMPT, replace(GREEDY, max_tokens=7), "r")
    texts = []
    while engine.has_work:
        texts += [delta.text for delta in engine.step()]
    assert texts == ["", "é", "", "", "", "🙂", "x"]
    cut = run(engine, PROMPT, replace(GREEDY, max_tokens=4))["r", 0]
    assert cut.text == "é\ufffd"


def test_logprobs_are_of_the_tokens(plain: list[int]) -> None:
    params = replace(GREEDY, logprobs=2, max_tokens=5)
    for drafted in (False, True):
        engine = make_engine(drafter=with_drafts(plain, drafted))
        answer = run(engine, PROMPT, params)["r", 0]
        assert [entry.token_id for entry in answer.logprobs] == plain[:5]
        for entry in answer.logprobs:
            assert len(entry.top) == 2
            assert entry.top[0] == (entry.token_id, entry.logprob)
            assert 0 > entry.top[0][1] > entry.top[1][1]
    alone = run(make_engine(), PROMPT, replace(params, logprobs=0))["r", 0]
    assert [entry.top for entry in alone.logprobs] == [()] * 5


def test_a_seed_is_drawn_and_reported() -> None:
    engine = make_engine()
    params = SamplingParams(temperature=1.5, max_tokens=20, ignore_eos=True)
    seeds = [engine.submit(PROMPT, params, name).seed for name in "ab"]
    answers = drain(engine)
    assert answers["a", 0].token_ids != answers["b", 0].token_ids
    again = run(make_engine(), PROMPT, replace(params, seed=seeds[0]))["r", 0]
    assert again.token_ids == answers["a", 0].token_ids


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("top_k", -1),
        ("top_k", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 2.2e-313),
        ("presence_penalty", float("inf")),
        ("frequency_penalty", 101),
        ("max_tokens", 0),
        ("n", 0),
        ("n", 129),
        ("seed", 2**64),
        ("seed", 1.5),
        ("logprobs", -1),
        ("logprobs", 65),
        ("stop", "text"),
        ("stop", ("",)),
        ("stop", ("x",) * 65),
        ("stop_token_ids", (256,)),
        ("stop_token_ids", (-1,)),
        ("shown_token_ids", (256,)),
        ("shown_token_ids", (-1,)),
        ("shown_token_ids", (0,) * 65),
        ("logit_bias", {256: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {1: float("nan")}),
    ],
)
def test_a_parameter_out_of_its_limits_is_named(field: str, value: object) -> None:
    engine = make_engine()
    with pytest.raises(InvalidParameterError, match=field) as caught:
        engine.submit(PROMPT, SamplingParams(**{field: value}), "r")
    assert caught.value.parameter == field
    assert not engine.has_work


@pytest.mark.parametrize(
    "prompt", [[], [256], [-1], [2**40], ["a"], [1.5], [[1], [2, 3]], [[1, 2]], [2**70], [True]]
)
def test_a_prompt_that_is_none_is_refused(prompt: list) -> None:
    with pytest.raises(InvalidParameterError, match="prompt"):
        make_engine().submit(prompt, SamplingParams(), "r")


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    engine = make_engine(max_context=20)
    with pytest.raises(ContextLengthError) as caught:
        engine.submit(prompt_of(20), SamplingParams(), "r")
    assert (caught.value.num_tokens, caught.value.max_context) == (20, 20)
    assert "raise --max-context" in str(caught.value)
    assert len(run(engine, prompt_of(19), GREEDY)["r", 0].token_ids) == 1


def test_nobody_is_told_to_raise_a_context_that_is_the_models_own() -> None:
    backend = null_backend(num_blocks=16)
    engine = make_engine(backend)
    with pytest.raises(ContextLengthError) as caught:
        engine.submit(prompt_of(backend.spec.max_context), SamplingParams(), "r")
    assert "shorten the prompt" in str(caught.value)
    assert "--max-context" not in str(caught.value)


def test_a_prompt_that_can_never_fit_is_refused_at_once() -> None:
    engine = make_engine(null_backend(2))
    with pytest.raises(OutOfMemoryError, match=r"64 tokens.*raise --kv-cache$"):
        engine.submit(prompt_of(64), SamplingParams(), "r")
    assert len(run(engine, prompt_of(63), GREEDY)["r", 0].token_ids) == 1


def test_a_full_queue_refuses() -> None:
    engine = make_engine(max_num_seqs=2, max_waiting=3)
    for number in range(5):
        engine.submit(PROMPT, GREEDY, str(number))
    with pytest.raises(OverloadedError):
        engine.submit(PROMPT, GREEDY, "one more")
    assert len(drain(engine)) == 5
    engine.submit(PROMPT, replace(GREEDY, n=5), "now")
    assert len(drain(engine)) == 5


def test_an_id_in_use_is_refused() -> None:
    engine = make_engine()
    engine.submit(PROMPT, GREEDY, "r")
    with pytest.raises(InvalidParameterError, match="in use"):
        engine.submit(PROMPT, GREEDY, "r")
    drain(engine)
    run(engine, PROMPT, GREEDY)


# --- what ends early ----------------------------------------------------------------------------


def test_abort_at_any_step(plain: list[int]) -> None:
    for steps in range(12):
        engine = make_engine(max_batch_tokens=4)
        engine.submit(PROMPT, GREEDY, "r")
        engine.submit(PROMPT, GREEDY, "other")
        answers = {}
        for _ in range(steps):
            collect(answers, engine.step())
        engine.abort("r")
        engine.abort("r")
        engine.abort("unknown")
        drain(engine, answers)
        assert answers["r", 0].finish_reason is FinishReason.ABORT
        assert answers["r", 0].token_ids == plain[: len(answers["r", 0].token_ids)]
        assert answers["other", 0].token_ids == plain
        assert engine.pool.num_held == 0


def test_a_failed_step_ends_only_what_it_carried(plain: list[int], caplog: pytest.LogCaptureFixture) -> None:
    engine = make_engine(FailingBackend(null_backend(), [3]), max_num_seqs=2)
    with caplog.at_level(logging.CRITICAL):
        answers = run(engine, dict.fromkeys("abc", PROMPT), GREEDY)
    for name in "ab":
        answer = answers[name, 0]
        assert answer.finish_reason is FinishReason.ERROR
        assert answer.error == "this step fails on purpose"
        assert answer.token_ids == plain[:3]
    assert answers["c", 0].token_ids == plain
    assert engine.pool.num_held == 0
    engine.pool.check()


def test_a_failed_step_leaves_nothing_in_the_prefix_cache(caplog: pytest.LogCaptureFixture) -> None:
    prompt = prompt_of(100)
    expected = run(make_engine(), prompt, GREEDY)["r", 0].token_ids
    engine = make_engine(FailingBackend(null_backend(), [1]), max_batch_tokens=50)
    with caplog.at_level(logging.CRITICAL):
        failed = run(engine, prompt, GREEDY)["r", 0]  # 50 rows are good, the next 50 garbage
    assert failed.finish_reason is FinishReason.ERROR
    again = run(engine, prompt, GREEDY)["r", 0]
    assert again.last.num_cached_tokens == 32
    assert again.token_ids == expected


def test_a_text_defect_ends_only_its_request(plain: list[int], caplog: pytest.LogCaptureFixture) -> None:
    engine = make_engine()
    engine.submit(PROMPT, GREEDY, "bad")
    engine.submit(PROMPT, GREEDY, "good")
    (bad,) = engine._open["bad"]

    class Broken:
        def push(self, token_ids: object) -> str:
            raise ValueError("no text")

    bad.detokenizer = Broken()
    with caplog.at_level(logging.CRITICAL):
        answers = drain(engine)
    assert answers["bad", 0].finish_reason is FinishReason.ERROR
    assert answers["bad", 0].error == "ValueError: no text"
    assert answers["good", 0].token_ids == plain
    assert engine.pool.num_held == 0


# --- figures ------------------------------------------------------------------------------------


def test_stats_of_a_step(plain: list[int]) -> None:
    engine = make_engine(drafter=with_drafts(plain, True), max_draft_tokens=4)
    engine.submit(PROMPT, GREEDY, "r")
    engine.step()
    engine.step()
    stats = engine.last_stats
    assert stats is not None
    assert (stats.num_rows, stats.num_requests, stats.num_draft_tokens) == (5, 1, 4)
    assert (stats.num_accepted_tokens, stats.num_new_tokens) == (4, 5)
    assert 0 < stats.backend_seconds < stats.step_seconds
