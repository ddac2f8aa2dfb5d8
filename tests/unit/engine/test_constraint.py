"""Answers within grammars: with drafts and without, hot and cold, and how few passes what is forced costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine_harness import WatchedBackend, drain, make_engine, null_backend
from oracle_drafter import EachAlone
from outpace import draft
from outpace.draft.step_costs import StepCosts
from outpace.errors import InvalidParameterError
from outpace.llm import LLM
from outpace.types import (
    Draft,
    DraftCount,
    EngineConfig,
    FinishReason,
    Grammar,
    Int32Array,
    SamplingParams,
    StepBatch,
    StepOutput,
)

SCHEMA = {
    "type": "object",
    "properties": {
        "name_of_the_city": {"type": "string", "maxLength": 30},
        "continent": {"enum": ["Africa", "America", "Asia", "Europe"]},
        "number_of_inhabitants": {"type": "integer", "minimum": 0, "maximum": 99_999_999},
    },
    "required": ["name_of_the_city", "continent", "number_of_inhabitants"],
    "additionalProperties": False,
}
CITY = Grammar("json_schema", json.dumps(SCHEMA))


@pytest.fixture(scope="module")
def llm(model_135m: Path) -> Iterator[LLM]:
    with LLM(model_135m, kv_cache_bytes=1 << 26, max_context=1024, draft_persist=False) as opened:
        yield opened


@pytest.mark.parametrize("temperature", [0.0, 0.8, 2.0])
def test_the_answer_is_json_of_the_schema(llm: LLM, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=3, n=2, max_tokens=200, grammar=CITY)
    [output] = llm.chat([{"role": "user", "content": "Describe a city."}], params)
    for choice in output.outputs:
        assert choice.finish_reason is FinishReason.STOP
        city = json.loads(choice.text)
        assert list(city) == list(SCHEMA["properties"])
        assert city["continent"] in {"Africa", "America", "Asia", "Europe"}
        assert isinstance(city["number_of_inhabitants"], int)


def test_forced_tokens_cost_no_pass_of_their_own(llm: LLM, model_135m: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=200, grammar=CITY)
    messages = [{"role": "user", "content": "Describe a city."}]
    deltas = list(llm.stream(messages, params))
    token_ids = [token for delta in deltas for token in delta.token_ids]
    counts = {count.proposer: count for count in deltas[-1].draft_counts}
    forced = counts["grammar"]
    assert forced == DraftCount("grammar", forced.num_drafted, forced.num_drafted), "all of them come true"
    assert forced.num_drafted > 12, "the keys, most of all"
    assert len(deltas) <= len(token_ids) - forced.num_drafted
    with LLM(model_135m, kv_cache_bytes=1 << 26, max_context=1024, draft="off") as plain:
        assert list(plain.chat(messages, params)[0].outputs[0].token_ids) == token_ids


def test_a_choice_of_words_takes_a_pass_each(llm: LLM) -> None:
    grammar = Grammar("regex", "The answer is (yes, without any doubt|no, not at all)\\.")
    deltas = list(llm.stream("Is fire hot?", SamplingParams(temperature=0, max_tokens=50, grammar=grammar)))
    assert "".join(delta.text for delta in deltas) in {
        "The answer is yes, without any doubt.",
        "The answer is no, not at all.",
    }
    assert len(deltas) <= 4


def test_an_answer_that_is_cut_is_cut_as_ever(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, grammar=CITY)
    [output] = llm.generate("A city: ", params)
    assert output.outputs[0].finish_reason is FinishReason.LENGTH
    assert len(output.outputs[0].token_ids) == 5


def test_a_bad_grammar_is_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InvalidParameterError, match="regular expression cannot be used"):
        llm.generate("Hi", SamplingParams(grammar=Grammar("regex", "(")))


def test_guesses_that_do_not_fit_are_cut() -> None:
    """The oracle's guesses are of an answer without the grammar: they never change the one with it."""
    prompt = list(b"abcabcabcabcabcabcabcabc")
    grammar = Grammar("regex", "(abcab|xyzzy){2}")
    params = SamplingParams(temperature=0, max_tokens=64, grammar=grammar)
    answers = []
    for drafter in (None, draft.create(EngineConfig(), StepCosts.free(), 256, None)):
        engine = make_engine(null_backend(), drafter=drafter, max_draft_tokens=16)
        engine.submit(prompt, params, "one")
        answers.append(drain(engine)["one", 0])
        engine.drafter.close()
    assert answers[0].token_ids == answers[1].token_ids
    text = bytes(token for token in answers[0].token_ids if token).decode()
    assert text in {"abcababcab", "abcabxyzzy", "xyzzyabcab", "xyzzyxyzzy"}


class Scripted(WatchedBackend):
    """Says what it was told to, and takes no guesses."""

    def __init__(self, text: list[int]) -> None:
        super().__init__(null_backend())
        self.text = text  # prompt and answer

    def step(self, batch: StepBatch) -> StepOutput:
        out = super().step(batch)
        ends = batch.num_computed_tokens + np.diff(batch.row_start) - batch.num_draft_tokens
        out.token_ids[:, 0] = [self.text[end] for end in ends]
        out.num_accepted[:] = 0
        return out


class OneGuess(EachAlone):
    """Guesses one token, after so many others."""

    def __init__(self, num_tokens: int, token_id: int) -> None:
        super().__init__()
        self.num_tokens, self.token_id = num_tokens, token_id

    def guess(self, key: str, token_ids: Int32Array, max_tokens: int) -> Draft | None:
        return Draft([self.token_id], None, "guess") if len(token_ids) == self.num_tokens else None


def test_a_guess_that_leads_the_parser_to_its_limit_harms_nothing() -> None:
    """One more "a" would be too many for it, but the answer goes on with "b"."""
    counts = " | ".join(" ".join(["e"] * count) for count in range(2, 25))
    grammar = Grammar("lark", f'start: (e | "b")*\ne: "a" | "" | {counts}')
    drafter = OneGuess(1 + 5, ord("a"))
    engine = make_engine(Scripted([1, *b"aaaaabab", 0]), drafter=drafter)
    engine.submit([1], SamplingParams(temperature=0, grammar=grammar), "one")
    got = drain(engine)["one", 0]
    assert (got.text, got.finish_reason, got.error) == ("aaaaabab", FinishReason.STOP, None)
