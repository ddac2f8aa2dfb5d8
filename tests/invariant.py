"""The invariant as a check over any backend: speed never changes an answer.

`check_invariant(factory, tokenizer, scenario)` runs a random scenario (batch mix, chunks, KV budget, drafts,
lanes, deadlines, cancellations, failing steps) and compares every choice with the same request alone, without
drafts, prefix cache or chunks: token ids, text, log probabilities and finish reasons, bit for bit. All blocks
must be back.
With a disk tier the scenario runs twice over one folder: up to some step, where the engine ends, and then,
perhaps with damaged files, as a whole.
"""

from __future__ import annotations

import logging
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hypothesis import strategies as st

from engine_harness import Answer, Answers, BackendFactory, FailingBackend, collect, drain, make_engine
from oracle_drafter import DraftMode, OracleDrafter, OracleProposer
from outpace import draft
from outpace.draft.controller import DraftController
from outpace.draft.draft_head import HeadProposer
from outpace.draft.proposer import ComputingProposer
from outpace.draft.step_costs import StepCosts
from outpace.engine.block_store import BlockStore
from outpace.engine.sampling import choice_seed
from outpace.text.tokenizer import Tokenizer
from outpace.types import (
    BLOCK_SIZE,
    Drafter,
    DraftHead,
    DraftHints,
    EngineConfig,
    FinishReason,
    Grammar,
    Lane,
    SamplingParams,
)


@dataclass(frozen=True)
class Arrival:
    """One request of a scenario."""

    prompt: tuple[int, ...]
    params: SamplingParams
    at_step: int
    cancel_at_step: int | None
    seconds: float | None  # to its deadline


@dataclass(frozen=True)
class Scenario:
    """What happens to an engine, and how it is set."""

    arrivals: tuple[Arrival, ...]
    num_blocks: int
    max_num_seqs: int
    max_batch_tokens: int
    max_stall_ms: int
    prefix_cache: bool
    draft: DraftMode | Literal["look-up"] | None  # the product's own proposers, or an oracle's guesses
    controlled: bool  # the oracle's guesses go through the controller, which verifies some of them
    max_draft_tokens: int
    max_tree_tokens: int
    failing_steps: frozenset[int]
    disk: DiskScenario | None


@dataclass(frozen=True)
class DiskScenario:
    """A tier on disk and what happens to it."""

    room: int  # for so many blocks in segments of their own: segments are evicted
    restart_at_step: int
    num_damaged: int  # bytes, between the two runs
    seed: int  # of the damage, and of how long reads and writes take
    slowest: float  # seconds


@st.composite
def sampling_params(draw: st.DrawFn, vocab_size: int, max_tokens: int) -> SamplingParams:
    """Any parameters, greedy and plain ones often."""

    def often(usual: float, others: st.SearchStrategy[float]) -> float:
        return draw(st.one_of(st.just(usual), st.just(usual), others))

    tokens = st.integers(0, vocab_size - 1)
    return SamplingParams(
        max_tokens=draw(st.one_of(st.just(max_tokens), st.integers(1, max_tokens))),
        temperature=draw(st.sampled_from([0.0, 0.0, 0.7, 1.0, 1.5])),
        top_k=draw(st.sampled_from([0, 0, 1, 5, 40])),
        top_p=often(1.0, st.floats(0.05, 1.0)),
        min_p=often(0.0, st.floats(0.0, 0.5)),
        repetition_penalty=often(1.0, st.floats(0.5, 2.0)),
        presence_penalty=often(0.0, st.floats(-2, 2)),
        frequency_penalty=often(0.0, st.floats(-2, 2)),
        logit_bias=draw(st.one_of(st.just({}), st.dictionaries(tokens, st.floats(-20, 20), max_size=4))),
        seed=draw(st.integers(0, 2**64 - 1)),
        n=draw(st.sampled_from([1, 1, 1, 2, 3])),
        stop=draw(st.sampled_from([(), (), ("a",), ("the", "Q", "\ufffd\ufffd\ufffd")])),
        stop_token_ids=tuple(draw(st.lists(tokens, max_size=4))),
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.sampled_from([None, None, 0, 3])),
        grammar=draw(st.sampled_from([None, None, None, *GRAMMARS])),
    )


GRAMMARS = (
    Grammar("regex", r"(yes, because|no, although|perhaps)( [a-z]{1,9}){3,}\."),
    Grammar("json_schema", '{"type": "array", "items": {"enum": ["some text", "some more"]}}'),
)


TREES = ("tree", "tree", "broken tree")
DRAFTS = (None, "look-up", "look-up", "right", "wrong", "half", "mixed", "broken", *TREES)


@st.composite
def scenarios(
    draw: st.DrawFn,
    vocab_size: int,
    *,
    max_requests: int = 6,
    max_prompt: int = 150,
    max_tokens: int = 70,
    disk: bool = False,
) -> Scenario:
    """Scenarios with prompts that share beginnings, and KV budgets that force eviction and preemption.

    With `disk` there is a tier on disk, and prompts are long enough for it.
    """
    shared = draw(st.lists(st.integers(0, vocab_size - 1), min_size=max_prompt, max_size=max_prompt))
    arrivals: list[Arrival] = []
    for _ in range(draw(st.integers(1, max_requests))):
        whole_blocks = [32, 64, 96]  # the last block is full: its end must still be computed
        any_number = st.integers(BLOCK_SIZE if disk else 0, max_prompt - 8)
        kept = draw(st.one_of(any_number, st.sampled_from(whole_blocks)))
        fewest = 1 if kept == 0 else 0
        own = draw(st.lists(st.integers(0, vocab_size - 1), min_size=fewest, max_size=8))
        arrivals.append(
            Arrival(
                prompt=(*shared[:kept], *own),
                params=draw(sampling_params(vocab_size, max_tokens)),
                at_step=draw(st.one_of(st.just(0), st.integers(0, 30))),
                cancel_at_step=draw(st.one_of(st.none(), st.none(), st.integers(0, 60))),
                seconds=draw(st.sampled_from([None, None, None, 0.0001, 0.003, 60.0])),
            )
        )
    smallest = max(len(arrival.prompt) for arrival in arrivals) // BLOCK_SIZE + 1
    return Scenario(
        arrivals=tuple(arrivals),
        num_blocks=smallest + draw(st.sampled_from([0, 1, 2, 3, 4, 12])),
        max_num_seqs=draw(st.sampled_from([1, 2, 4, 16])),
        max_batch_tokens=draw(st.sampled_from([1, 3, 16, 33, 64, 512])),
        max_stall_ms=draw(st.sampled_from([0, 1, 250])),
        prefix_cache=disk or draw(st.booleans()),
        draft=draw(st.sampled_from(DRAFTS)),
        controlled=draw(st.booleans()),
        max_draft_tokens=draw(st.sampled_from([1, 3, 15])),
        max_tree_tokens=draw(st.sampled_from([64, 64, 20, 4, 0])),
        failing_steps=draw(st.one_of(st.just(frozenset()), st.frozensets(st.integers(0, 60), max_size=2))),
        disk=draw(disks) if disk else None,
    )


disks = st.builds(
    DiskScenario,
    room=st.sampled_from([2, 5, 1000]),
    restart_at_step=st.sampled_from([0, 5, 30, 1000]),
    num_damaged=st.sampled_from([0, 0, 1, 20]),
    seed=st.integers(0, 1000),
    slowest=st.sampled_from([0.0, 0.002]),
)


def alone(
    factory: BackendFactory, tokenizer: Tokenizer, arrival: Arrival, index: int, num_blocks: int
) -> Answer:
    """One choice's answer alone: no other request, no drafts, no cache, the prompt in one step."""
    seed = choice_seed(arrival.params.seed or 0, index)
    engine = make_engine(
        factory(num_blocks), tokenizer, max_batch_tokens=4096, max_num_seqs=1, prefix_cache=False, draft="off"
    )
    engine.submit(arrival.prompt, replace(arrival.params, n=1, seed=seed), "alone")
    return drain(engine)["alone", 0]


def check_invariant(
    factory: BackendFactory, tokenizer: Tokenizer, scenario: Scenario, head: DraftHead | None = None
) -> None:
    """Run the scenario and compare; see the module. The backend's draft head takes part if it is given."""
    expected: Answers = {}
    for number, arrival in enumerate(scenario.arrivals):
        for index in range(arrival.params.n):
            expected[str(number), index] = alone(factory, tokenizer, arrival, index, scenario.num_blocks)
    with tempfile.TemporaryDirectory() as folder:
        if scenario.disk is not None:
            answers, failed = _run(
                factory, tokenizer, scenario, expected, Path(folder), head, interrupted=True
            )
            _compare_all(scenario, answers, expected, cancelled=True, failed=failed)
            _damage(Path(folder), scenario.disk)
        answers, failed = _run(factory, tokenizer, scenario, expected, Path(folder), head)
    assert set(answers) == set(expected), "every choice is answered"
    _compare_all(scenario, answers, expected, cancelled=False, failed=failed)


def _compare_all(
    scenario: Scenario, answers: Answers, expected: Answers, *, cancelled: bool, failed: bool
) -> None:
    for key, answer in answers.items():
        arrival = scenario.arrivals[int(key[0])]
        left = cancelled or arrival.cancel_at_step is not None
        _compare(answer, expected[key], cancelled=left, failed=failed, overdue=arrival.seconds is not None)


class UnsteadyStore(BlockStore):
    """A disk that takes its time, now and then."""

    def __init__(self, folder: Path, block_bytes: int, disk: DiskScenario) -> None:
        super().__init__(folder / "model", b"k" * 32, block_bytes, disk.room * (8192 + block_bytes))
        self._chance, self._slowest = random.Random(disk.seed), disk.slowest

    def read(self, digests, blocks):
        time.sleep(self._chance.random() * self._slowest)
        return super().read(digests, blocks)

    def write(self, digests, blocks):
        time.sleep(self._chance.random() * self._slowest)
        super().write(digests, blocks)


def _damage(folder: Path, disk: DiskScenario) -> None:
    """Change random bytes of what was written, the tables at the heads of files as often as the rest."""
    chance = random.Random(disk.seed)
    files = sorted(folder.glob("*/*.blocks"))
    for _ in range(disk.num_damaged if files else 0):
        path = chance.choice(files)
        data = bytearray(path.read_bytes())
        at = chance.randrange(chance.choice([64, 5000, len(data)]))
        data[at] ^= chance.randrange(1, 256)
        path.write_bytes(data)


def _run(
    factory: BackendFactory,
    tokenizer: Tokenizer,
    scenario: Scenario,
    expected: Answers,
    folder: Path,
    head: DraftHead | None,
    *,
    interrupted: bool = False,
) -> tuple[Answers, bool]:
    """The scenario's answers, up to the restart if `interrupted`, and whether a step failed."""
    backend = FailingBackend(factory(scenario.num_blocks), scenario.failing_steps)
    backend.max_rows = scenario.max_batch_tokens
    drafter = None
    if scenario.draft and scenario.draft != "look-up":
        sequences = {
            f"{number}/{index}": [*scenario.arrivals[int(number)].prompt, *answer.token_ids]
            for (number, index), answer in expected.items()
        }
        drafter = OracleDrafter(sequences, scenario.draft, backend.spec.vocab_size)
    engine = make_engine(
        backend,
        tokenizer,
        _drafter(scenario, drafter, backend.spec.vocab_size, head),
        max_num_seqs=scenario.max_num_seqs,
        max_batch_tokens=scenario.max_batch_tokens,
        max_stall_ms=scenario.max_stall_ms,
        prefix_cache=scenario.prefix_cache,
        max_draft_tokens=scenario.max_draft_tokens,
        max_tree_tokens=scenario.max_tree_tokens,
        store=scenario.disk and UnsteadyStore(folder, backend.kv_blocks.shape[1], scenario.disk),
    )
    if engine.disk is not None:
        engine.disk.min_blocks = 1
    answers: Answers = {}
    logging.disable(logging.CRITICAL)  # failures on purpose
    try:
        until = scenario.disk.restart_at_step if scenario.disk and interrupted else None
        _play(engine, scenario.arrivals, answers, expected, until)
    finally:
        engine.close()
        logging.disable(logging.NOTSET)
    engine.drafter.close()
    assert engine.pool.num_held == 0, "all blocks come back"
    engine.pool.check()
    if drafter and not interrupted:
        ends = sorted(f"{number}/{index}" for number, index in expected)
        assert sorted(drafter.forgotten) == (sorted(ends * 2) if scenario.controlled else ends)
    return answers, any(step < len(backend.batches) for step in scenario.failing_steps)


def _drafter(
    scenario: Scenario, oracle: OracleDrafter | None, vocab_size: int, head: DraftHead | None
) -> Drafter | None:
    costs = StepCosts({1: 0.001, 4: 0.0012, 16: 0.003, 64: 0.012})
    own = None if head is None else (head, 0.05)
    if scenario.draft == "look-up" or (scenario.draft is None and head is not None):
        return draft.create(EngineConfig(draft_persist=False), costs, vocab_size, None, head=own)
    if oracle is None or not scenario.controlled:
        return oracle
    models: list[ComputingProposer] = [OracleProposer(oracle, cost=0.0001)]
    if own is not None:
        models.insert(0, HeadProposer(own[0], costs, own[1]))
    return DraftController([OracleProposer(oracle)], costs, models)


LANES: tuple[Lane, ...] = ("default", "priority", "flex", "default")


def _hints(number: int, arrival: Arrival, expected: Answers) -> DraftHints:
    """Several scopes, lanes and deadlines; every other request has a prediction, which is nearly right."""
    prediction = list(expected[str(number), 0].token_ids) if number % 2 else []
    del prediction[5:7]
    deadline = time.perf_counter() + arrival.seconds if arrival.seconds is not None else 0.0
    return DraftHints(
        scope=str(number % 3), prediction=prediction, lane=LANES[number % len(LANES)], deadline=deadline
    )


def _play(
    engine, arrivals: Sequence[Arrival], answers: Answers, expected: Answers, until: int | None
) -> None:
    """Submit, cancel and step in the scenario's order, then to the end; at step `until` end everything."""
    last = max(max(arrival.at_step, arrival.cancel_at_step or 0) for arrival in arrivals)
    for step in range(last + 1):
        if step == until:
            collect(answers, engine.abort_all())
            break
        for number, arrival in enumerate(arrivals):
            if arrival.at_step == step:
                engine.submit(arrival.prompt, arrival.params, str(number), _hints(number, arrival, expected))
            if arrival.cancel_at_step == step:
                engine.abort(str(number))  # unknown before its arrival: then it just runs
        collect(answers, engine.step())
    drain(engine, answers)


def _compare(answer: Answer, expected: Answer, *, cancelled: bool, failed: bool, overdue: bool) -> None:
    allowed = {expected.finish_reason}
    if overdue:
        allowed |= {FinishReason.LENGTH, FinishReason.TIMEOUT}
    if cancelled:
        allowed.add(FinishReason.ABORT)
    if failed:
        allowed.add(FinishReason.ERROR)
    assert answer.finish_reason in allowed
    cut = overdue and answer.finish_reason is FinishReason.LENGTH
    if answer.finish_reason is expected.finish_reason and not cut:
        assert answer.token_ids == expected.token_ids
        assert answer.text == expected.text
        assert answer.logprobs == expected.logprobs
    else:  # ended before its time: what came until then is right
        count = len(answer.token_ids)
        assert answer.token_ids == expected.token_ids[:count]
        assert answer.logprobs == expected.logprobs[: len(answer.logprobs)]
