"""A second model that runs ahead.

Over the null backend, whose tokens depend on every entry of the KV cache, a draft model that is the model
itself must always be right; a wrong entry, position or noise shows as a wrong guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from asking import Asking

from engine_harness import Answers, WatchedBackend, drain, make_engine, null_backend
from outpace import LLM, SamplingParams
from outpace.backends.native_backend import NativeBackend
from outpace.draft.controller import DraftController
from outpace.draft.draft_model import CONTEXT, WINDOW, ModelProposer
from outpace.draft.proposer import Proposal
from outpace.draft.step_costs import StepCosts
from outpace.errors import UsageError
from outpace.models.checkpoint import open_checkpoint
from outpace.types import Backend, DraftRequest, StepBatch, StepOutput

CHEAP = StepCosts({1: 1e-5, 64: 1.1e-5})
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
KINDS = {
    "greedy": GREEDY,
    "sampled": SamplingParams(temperature=0.8, top_p=0.95, seed=7, max_tokens=40, ignore_eos=True),
    "penalties": SamplingParams(
        temperature=1.0, seed=3, repetition_penalty=1.3, presence_penalty=0.5, max_tokens=40, ignore_eos=True
    ),
}


class Undaunted(ModelProposer):
    """Makes all guesses that it is asked for: pseudo-logits give none of them a chance worth naming."""

    def propose(
        self,
        requests: Sequence[DraftRequest],
        max_tokens: Sequence[int],
        least_chances: Sequence[float] = (),
    ) -> Sequence[tuple[int, Proposal]]:
        return super().propose(requests, max_tokens)


def same_model(num_blocks: int = 128, vocab_size: int = 256) -> ModelProposer:
    backend = WatchedBackend(null_backend(num_blocks, vocab_size))
    return Undaunted(backend, CHEAP, max_batch_tokens=64)


def run(
    proposer: ModelProposer | None, prompts: list[list[int]], params: SamplingParams = GREEDY
) -> tuple[Answers, float, int]:
    """The answers, the share of guesses that came true, and how many there were."""
    drafter = None if proposer is None else DraftController([], StepCosts.free(), [proposer])
    engine = make_engine(WatchedBackend(null_backend(512)), drafter=drafter)
    for i, prompt in enumerate(prompts):
        engine.submit(prompt, params, f"r{i}")
    answers = drain(engine)
    lasts = [answer.last for answer in answers.values()]
    drafted = sum(last.num_drafted for last in lasts if last)
    accepted = sum(last.num_accepted for last in lasts if last)
    return answers, accepted / max(1, drafted), drafted


def token_ids(answers: Answers) -> dict[tuple[str, int], list[int]]:
    return {key: answer.token_ids for key, answer in answers.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_itself_is_always_right(kind: str) -> None:
    prompts = [list(range(1, length)) for length in (2, 31, 34, 100, 200)]
    plain, _, _ = run(None, prompts, KINDS[kind])
    answers, share, drafted = run(same_model(256), prompts, KINDS[kind])
    assert token_ids(answers) == token_ids(plain)
    assert drafted > 100
    assert share == 1.0


def test_a_long_request_is_read_from_its_window_on() -> None:
    proposer = same_model()
    long = [1 + i % 255 for i in range(3 * WINDOW)]
    params = SamplingParams(temperature=0.0, max_tokens=2 * CONTEXT, ignore_eos=True)
    plain, _, _ = run(None, [long], params)
    answers, _, drafted = run(proposer, [long], params)
    assert token_ids(answers) == token_ids(plain)
    assert drafted > 0
    assert sorted(proposer._free_blocks) == list(range(128))


def test_a_long_text_is_read_little_by_little() -> None:
    """Streams wait while it reads: never for more than 128 tokens at once, whoever they are of."""
    proposer = Undaunted(WatchedBackend(null_backend(128)), CHEAP, max_batch_tokens=512)
    assert isinstance(proposer._backend, WatchedBackend)
    requests = [Asking(f"{i}/0", list(range(1, 201))) for i in range(2)]
    guessed: list[list[int]] = []
    for _ in range(5):
        found = proposer.propose(requests, [3, 3])
        guessed.append([i for i, _ in found])
        assert sum(rows for _, rows in proposer._backend.batches) <= 128 + 2 * 3
        proposer._backend.batches.clear()
    # The first is ready after 128 of its 200 tokens, and guesses on while the second reads.
    assert guessed == [[], [0], [0], [0, 1], [0, 1]]


def test_no_block_is_taken_in_vain() -> None:
    proposer = same_model(num_blocks=3)
    long, short = Asking("long/0", list(range(1, 131))), Asking("short/0", list(range(1, 9)))
    proposer._window = 200
    assert proposer.propose([long], [3]) == []
    assert len(proposer._free_blocks) == 3
    assert [i for i, _ in proposer.propose([long, short], [3, 3])] == [1]


def test_a_text_of_rare_tokens_is_guessed_among_all() -> None:
    seen: list[int] = []

    class Noting(WatchedBackend):
        def step(self, batch: StepBatch) -> StepOutput:
            seen.append(batch.num_output_tokens)
            return super().step(batch)

    proposer = Undaunted(Noting(null_backend(128)), CHEAP, max_batch_tokens=64)
    proposer._num_common = 100
    common, rare = Asking("c/0", [1, 2, 3] * 20), Asking("r/0", [1, 2, 3, 200] * 15)
    for requests, expected in ([common], 100), ([rare], 0), ([common, rare], 0):
        proposer.propose(requests, [2] * len(requests))
        assert set(seen) == {expected}
        seen.clear()


def test_noise_is_that_of_the_position_in_the_text() -> None:
    """Where all tokens are as likely, noise alone decides: guesses are right though the model sees less."""
    length = WINDOW + 77
    prompt = [1 + i % 255 for i in range(length)]
    params = SamplingParams(temperature=100.0, seed=5, max_tokens=60, ignore_eos=True)
    _, share, drafted = run(same_model(), [prompt], params)
    assert drafted > 20
    assert share > 0.8


def test_without_room_for_all_some_go_without() -> None:
    proposer = same_model(num_blocks=3)
    prompts = [list(range(i + 1, i + 20)) for i in range(9)]
    params = SamplingParams(temperature=0.0, max_tokens=25, ignore_eos=True)
    plain, _, _ = run(None, prompts, params)
    answers, share, drafted = run(proposer, prompts, params)
    assert token_ids(answers) == token_ids(plain)
    assert share == 1.0
    assert drafted > 0
    assert sorted(proposer._free_blocks) == [0, 1, 2]


def test_a_token_that_the_smaller_vocabulary_lacks_ends_its_guesses() -> None:
    prompts = [[1, 2, 250, 3]]
    plain, _, _ = run(None, prompts)
    answers, _, drafted = run(same_model(vocab_size=200), prompts)
    assert token_ids(answers) == token_ids(plain)
    assert drafted == 0


def test_unlikely_guesses_are_not_followed_up() -> None:
    requests = [Asking(f"{i}/0", list(range(1, 9 + i))) for i in range(2)]
    for least_chances, expected in ([0.0] * 5, 5), ([0.0, 0.0, 0.9, 0.0, 0.0], 2), ((), 5):
        proposer = ModelProposer(null_backend(128), CHEAP, max_batch_tokens=64)
        found = proposer.propose(requests, [5, 1], least_chances)  # no pseudo-logit reaches 0.9
        assert [len(proposal.token_ids) for _, proposal in found] == [expected, 1]


class Hesitant(WatchedBackend):
    """Finds what it chooses likely by `first`, and the token after it by `second`."""

    def __init__(self, inner: Backend, first: float, second: float) -> None:
        super().__init__(inner)
        self.logprobs = np.log(np.array([first, second], np.float32))

    def step(self, batch: StepBatch) -> StepOutput:
        out = super().step(batch)
        assert out.logprobs is not None
        assert out.top_token_ids is not None
        assert out.top_logprobs is not None
        out.logprobs[:] = self.logprobs[0]
        out.top_token_ids[..., 0] = out.token_ids
        out.top_token_ids[..., 1] = (out.token_ids + 1) % self.spec.vocab_size
        out.top_logprobs[:] = self.logprobs
        return out


def test_likely_second_choices_branch_off() -> None:
    request = Asking(tokens=list(range(1, 9)))
    for second, room, expected in (0.3, 9, 3), (0.3, 5, 2), (0.3, 3, 0), (0.01, 9, 0):
        proposer = ModelProposer(Hesitant(null_backend(128), 0.6, second), CHEAP, max_batch_tokens=64)
        ((_, proposal),) = proposer.propose([request], [room], [0.0, 0.0, 0.0, *[1.0] * 6])
        chain, others = proposal.token_ids[:3], proposal.token_ids[3:]
        assert others == [(token_id + 1) % 256 for token_id in chain][:expected]
        assert proposal.parents == ([-1, 0, 1, *[-1, 0, 1][:expected]] if expected else None)
        assert proposal.classes == [9, 9, 9, *[16 + 4] * expected]


def test_second_choices_leave_the_answer_as_it_is() -> None:
    """Where the first guess is one off the token, the second choice is always right."""

    class Beside(Hesitant):
        def step(self, batch: StepBatch) -> StepOutput:
            out = super().step(batch)
            out.token_ids[:] = (out.token_ids - 1) % self.spec.vocab_size
            assert out.top_token_ids is not None
            out.top_token_ids[:] = (out.top_token_ids - 1) % self.spec.vocab_size
            return out

    prompts = [list(range(1, length)) for length in (2, 31, 34, 100)]
    plain, _, _ = run(None, prompts)
    proposer = ModelProposer(Beside(null_backend(128), 0.5, 0.45), CHEAP, max_batch_tokens=64)
    answers, _, drafted = run(proposer, prompts)
    assert token_ids(answers) == token_ids(plain)
    accepted = sum(answer.last.num_accepted for answer in answers.values() if answer.last)
    assert drafted > accepted > 8  # soon it is asked no longer: its first guesses are all wrong


def test_another_vocabulary_is_refused_with_the_reason(model_135m: Path, model_05b: Path) -> None:
    with pytest.raises(UsageError, match=r"another vocabulary: token 0 is '!', and '<\|endoftext\|>'"):
        LLM(model_135m, draft_model=str(model_05b))


@pytest.mark.model135m
def test_the_model_in_four_bits_guesses_for_itself(model_135m: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    with LLM(model_135m, draft="off", kv_cache_bytes=1 << 26) as llm:
        plain = llm.generate("The lighthouse keeper", params)[0]
    with LLM(model_135m, draft_model=str(model_135m), draft_sharing="off", kv_cache_bytes=1 << 26) as llm:
        drafter = llm.loop.engine.drafter
        assert isinstance(drafter, DraftController)
        drafter.costs = StepCosts.free()
        drafter._models[0]._costs = CHEAP  # else a model as large as the model is never asked
        deltas = list(llm.stream("The lighthouse keeper", params))
    assert tuple(t for delta in deltas for t in delta.token_ids) == plain.outputs[0].token_ids
    counts = {count.proposer: count for count in deltas[-1].draft_counts}
    assert counts["model"].num_accepted > 0.5 * len(plain.outputs[0].token_ids)


@pytest.mark.model135m
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_same_weights_agree_bit_for_bit(model_135m: Path, temperature: float) -> None:
    """Position, noise and what was read in pieces: a wrong one shows as a wrong guess."""
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=60, ignore_eos=True)
    prompt = "The lighthouse keeper counts: " + ", ".join(map(str, range(50)))
    with LLM(model_135m, draft="off", kv_cache_bytes=1 << 26) as llm:
        plain = llm.generate(prompt, params)[0]
    with LLM(model_135m, kv_cache_bytes=1 << 26) as llm:
        checkpoint = open_checkpoint(model_135m)
        backend = NativeBackend(checkpoint, replace(llm.config, kv_cache_bytes=1 << 24))
        proposer = Undaunted(backend, CHEAP, max_batch_tokens=64)
        llm.loop.engine.drafter = DraftController([], StepCosts.free(), [proposer])
        deltas = list(llm.stream(prompt, params))
        llm.loop.engine.drafter.close()
    assert tuple(t for delta in deltas for t in delta.token_ids) == plain.outputs[0].token_ids
    (count,) = deltas[-1].draft_counts
    assert count.num_accepted > 45


@pytest.mark.model15b
def test_a_smaller_model_of_the_family_is_often_right(model_05b: Path, model_15b: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=80)
    prompt = "def quicksort(items: list[int]) -> list[int]:\n"
    options = {"kv_cache_bytes": 1 << 26, "max_context": 2048}
    with LLM(model_15b, draft="off", **options) as llm:
        plain = llm.generate(prompt, params)[0]
    with LLM(model_15b, draft_model=str(model_05b), draft_sharing="off", **options) as llm:
        drafter = llm.loop.engine.drafter
        assert isinstance(drafter, DraftController)
        drafter.costs = StepCosts.free()
        drafter._models[0]._costs = CHEAP  # whether it pays is up to the machine
        deltas = list(llm.stream(prompt, params))
    assert tuple(t for delta in deltas for t in delta.token_ids) == plain.outputs[0].token_ids
    counts = {count.proposer: count for count in deltas[-1].draft_counts}
    assert counts["model"].num_accepted > 0.5 * counts["model"].num_drafted
