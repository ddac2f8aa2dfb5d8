"""A trained head on the model's hidden states: what it computes, and that it changes no answer.

The reference is the head in float32 torch on transformers' states; the native one has 8-bit weights and
activations, so it is near, not equal. Between native runs everything is compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from engine_harness import Answer, Answers, WatchedBackend, byte_tokenizer, drain, make_engine, with_blocks
from invariant import Scenario, check_invariant, scenarios
from outpace import LLM, backends
from outpace.backends.native_backend import NativeBackend
from outpace.config import cache_bytes_per_block, kv_bytes_per_block, resolve_engine_config
from outpace.draft.controller import DraftController
from outpace.draft.draft_head import HeadProposer
from outpace.draft.step_costs import StepCosts
from outpace.engine.block_store import BlockStore
from outpace.engine.engine import Engine
from outpace.engine.prefix_cache import extend_digests
from outpace.engine.sampling import pack
from outpace.errors import BackendError, UsageError
from outpace.models.checkpoint import open_checkpoint
from outpace.types import BLOCK_SIZE, Draft, DraftRequest, HeadBatch, HeadOutput, SamplingParams
from stepping import Rows, make_batch
from tiny_checkpoint import TinyCheckpoint, TinyFactory
from tools.train_draft_head import cut, frequent_tokens, run_model, target_of, train
from torch_head import TorchHead

VOCAB = 512
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
HOT = SamplingParams(temperature=0.8, top_p=0.95, seed=7, max_tokens=60, ignore_eos=True)
CHEAP = StepCosts.free()

relaxed = settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)


def load(checkpoint: TinyCheckpoint, folder: Path, **options) -> NativeBackend:
    opened = open_checkpoint(checkpoint.path)
    options = {"kv_cache_bytes": 8 << 20, "num_threads": 2, "draft_head": str(folder)} | options
    backend = backends.create(opened, resolve_engine_config(opened.spec, options))
    assert isinstance(backend, NativeBackend)
    return backend


def random_texts(count: int, length: int) -> list[list[int]]:
    random = np.random.default_rng(count)
    return [random.integers(1, VOCAB, length).tolist() for _ in range(count)]


@dataclass
class Trained:
    """A tiny model, and a head that was trained on what the model writes after some prompts."""

    checkpoint: TinyCheckpoint
    head: TorchHead
    folder: Path
    prompts: list[list[int]]


@pytest.fixture(scope="module")
def trained(
    tiny_checkpoint: TinyFactory, tmp_path_factory: pytest.TempPathFactory, one_torch_thread: None
) -> Trained:
    """A few seconds of training: it knows those answers by heart, and nothing else."""
    checkpoint = tiny_checkpoint("llama")
    target = target_of(checkpoint.model, checkpoint.path)
    prompts = random_texts(4, 8)
    opened = open_checkpoint(checkpoint.path)
    plain = backends.create(opened, resolve_engine_config(opened.spec, {"kv_cache_bytes": 8 << 20}))
    answers = run(plain, prompts)
    plain.close()
    texts = [[*prompt, *answers[f"r{i}", 0].token_ids] for i, prompt in enumerate(prompts)]
    head = TorchHead(target, np.arange(VOCAB, dtype=np.int32))
    pieces = cut(run_model(checkpoint.model, texts)) * 2  # what is held out is learned, too
    train(head, pieces, epochs=60, batch=4, rate=1e-2)
    folder = head.save(tmp_path_factory.mktemp("head"))
    return Trained(checkpoint, head, folder, prompts)


@pytest.fixture(scope="module")
def backend(trained: Trained) -> Iterator[NativeBackend]:
    made = load(trained.checkpoint, trained.folder)
    yield made
    made.close()


class Always:
    """Drafts what the head guesses, whatever came of it before."""

    def __init__(self, head: HeadProposer, depth: int = 5) -> None:
        self.head, self.depth = head, depth

    def propose(
        self, requests: Sequence[DraftRequest], rooms: Sequence[int], num_rows: int, num_tree_tokens: int
    ) -> list[Draft | None]:
        drafts: list[Draft | None] = [None] * len(requests)
        for i, proposal in self.head.propose(
            requests, [min(room, self.depth) for room in rooms], [0.05] * self.depth
        ):
            drafts[i] = Draft(proposal.token_ids, proposer="head")
        return drafts

    def observe(self, requests: Sequence[DraftRequest], num_rows: int, seconds: float) -> None:
        pass

    def finish(self, request: DraftRequest) -> None:
        self.head.finish(request)

    def close(self) -> None:
        self.head.close()


def proposer(backend: NativeBackend, share: float = 0.05) -> HeadProposer:
    assert backend.draft_head is not None
    return HeadProposer(backend.draft_head, CHEAP, share)


def run(
    backend: NativeBackend,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams = GREEDY,
    head: HeadProposer | None = None,
    **config,
) -> Answers:
    drafter = None if head is None else Always(head)
    engine = make_engine(WatchedBackend(backend), byte_tokenizer(VOCAB), drafter, **config)
    for i, prompt in enumerate(prompts):
        engine.submit(prompt, params, f"r{i}")
    return drain(engine)


def run_one(engine: Engine, prompt: Sequence[int]) -> Answer:
    engine.submit(prompt, GREEDY, "r")
    return drain(engine)["r", 0]


def token_ids(answers: Answers) -> dict[tuple[str, int], list[int]]:
    return {key: answer.token_ids for key, answer in answers.items()}


def accepted(answers: Answers) -> tuple[int, int]:
    lasts = [answer.last for answer in answers.values() if answer.last]
    return sum(last.num_accepted for last in lasts), sum(last.num_drafted for last in lasts)


def test_blocks_from_disk_bring_no_other_texts_states(trained: Trained, tmp_path: Path) -> None:
    backend = load(trained.checkpoint, trained.folder)
    store = BlockStore(tmp_path / "model", b"k" * 32, backend.kv_blocks.shape[1], 1 << 24)
    watched = WatchedBackend(backend, num_blocks=8)
    drafter = Always(proposer(backend))
    engine = make_engine(watched, byte_tokenizer(VOCAB), drafter, store=store, max_batch_tokens=64)
    wanted, other = random_texts(2, 200)
    assert engine.disk is not None
    for prompt in (wanted, other):
        run_one(engine, prompt)
        engine.disk.flush()
    assert backend.state_blocks is not None
    assert backend.state_blocks[:8].any(axis=1).sum() > 6
    answer = run_one(engine, wanted)
    digests: list[bytes] = []
    extend_digests(digests, np.array(wanted, np.int32), 6)
    blocks = [engine.pool.cache.block_of(digest) for digest in digests]
    assert answer.last is not None
    assert answer.last.num_cached_tokens == 6 * BLOCK_SIZE
    assert not backend.state_blocks[blocks].any()
    assert token_ids({("r0", 0): answer}) == token_ids(run(backend, [wanted]))
    engine.close()
    backend.close()


# --- what it computes -----------------------------------------------------------------------------------


def guess(
    backend: NativeBackend,
    text: Sequence[int],
    table: Sequence[int],
    num_guesses: int = 4,
    start: int = 0,
    params: SamplingParams = GREEDY,
) -> HeadOutput:
    """The head's guesses after a text whose tokens but the last one are in the blocks of `table`."""
    assert backend.draft_head is not None
    width = -(-(len(text) + num_guesses) // BLOCK_SIZE)
    batch = HeadBatch(
        token_ids=np.array(text[start:], np.int32),
        row_start=np.array([0, len(text) - start], np.int32),
        positions=np.array([start], np.int32),
        starts=np.array([start], np.int32),
        block_tables=np.array([table], np.int32),
        head_block_tables=np.arange(width, dtype=np.int32)[None],
        max_tokens=np.array([num_guesses], np.int32),
        sampling=pack(params, 0, 1).record,
        least_chances=np.zeros(num_guesses, np.float32),
    )
    return backend.draft_head.guess(batch)


def read(backend: NativeBackend, text: Sequence[int], table: list[int], chunk: int = 64) -> None:
    """Bring a text into the model's KV cache."""
    for start in range(0, len(text), chunk):
        backend.step(make_batch([Rows(text[start : start + chunk], start, table, sample=False)]))


@pytest.mark.parametrize("kind", ["trained", "two layers", "f16 cache"])
def test_its_guesses_are_the_reference_s(trained: Trained, kind: str, tmp_path: Path) -> None:
    head = trained.head
    if kind == "two layers":
        head = TorchHead(head.target, np.arange(VOCAB, dtype=np.int32), num_layers=2, theta=500.0)
    kv_format = "f16" if kind == "f16 cache" else "int8"
    backend = load(trained.checkpoint, head.save(tmp_path), kv_format=kv_format)
    texts = random_texts(10, 45) + [prompt[: 1 + 3 * i] for i, prompt in enumerate(trained.prompts[:3])]
    states = run_model(trained.checkpoint.model, texts).states
    same = total = 0
    off: list[float] = []
    for text, hidden in zip(texts, states, strict=True):
        read(backend, text[:-1] or text, [3, 1])
        out = guess(backend, text, [3, 1])
        wanted, chances = head.chain(text, hidden.float(), 4)
        for depth in range(4):
            total += 1
            if out.token_ids[0, depth] != wanted[depth]:
                break
            same += 1
            off.append(abs(float(out.chances[0, depth]) - float(chances[depth].max())))
    backend.close()
    assert same > 0.85 * total
    assert np.mean(off) < 0.02


def test_a_wrong_reference_would_be_noticed(trained: Trained, backend: NativeBackend) -> None:
    """Without the hidden states, or with those of the wrong tokens, guesses differ."""
    text = trained.prompts[0]
    hidden = run_model(trained.checkpoint.model, [text]).states[0].float()
    read(backend, text[:-1], [0])
    out = guess(backend, text, [0], 1)
    for wrong in (torch.zeros_like(hidden), hidden.roll(1, 0)):
        _, chances = trained.head.chain(text, wrong, 1)
        assert abs(float(out.chances[0, 0]) - float(chances[0][int(out.token_ids[0, 0])])) > 0.05


def test_states_do_not_depend_on_how_the_text_came(trained: Trained, backend: NativeBackend) -> None:
    """In chunks, row by row, as a chain of drafts or as the second branch of a tree in other blocks."""
    text = random_texts(1, 40)[0]
    plain = run(backend, [text], replace(GREEDY, max_tokens=13))
    text = [*text, *plain["r0", 0].token_ids]
    before, drafts = text[:40], text[41:52]
    read(backend, text[:-1], [0, 1])
    wanted = guess(backend, text, [0, 1])

    def check(table: list[int]) -> None:
        out = guess(backend, text, table)
        assert out.token_ids.tolist() == wanted.token_ids.tolist()
        assert out.chances.tolist() == wanted.chances.tolist()

    read(backend, text[:-1], [2, 3], chunk=7)
    check([2, 3])
    wrong = [(token + 1) % VOCAB for token in drafts]
    for parents, rows in (
        (None, drafts),
        ([*range(-1, 10), -1, *range(11, 21)], wrong + drafts),
        ([-1, -1, *range(1, 11)], [wrong[0], *drafts]),
    ):
        read(backend, [5] * 63, [4, 5])  # what is left over there is another text's
        read(backend, before, [4, 5])
        out = backend.step(make_batch([Rows([text[40], *rows], 40, [4, 5], len(rows), parents=parents)]))
        assert out.num_accepted[0] == len(drafts)
        check([4, 5])


def test_refused_drafts_leave_nothing_behind(trained: Trained, backend: NativeBackend) -> None:
    text = trained.prompts[3]
    read(backend, text, [0])
    wanted = guess(backend, [*text, 9], [0])
    wrong = [1, 2, 3, 4, 5]
    for parents in (None, [-1, -1, -1, 0, 1]):
        read(backend, text[:-1], [1])
        out = backend.step(make_batch([Rows([text[-1], *wrong], len(text) - 1, [1], 5, parents=parents)]))
        assert out.num_accepted[0] == 0
        assert guess(backend, [*text, 9], [1]).chances.tolist() == wanted.chances.tolist()


def test_many_rows_are_read_in_parts(trained: Trained) -> None:
    text = random_texts(1, 90)[0]
    outs = []
    for rows in (512, 16):
        backend = load(trained.checkpoint, trained.folder, max_batch_tokens=rows)
        read(backend, text[:-1], [0, 1, 2], chunk=16)
        outs.append(guess(backend, text, [0, 1, 2]))
        backend.close()
    assert outs[0].token_ids.tolist() == outs[1].token_ids.tolist()
    assert outs[0].chances.tolist() == outs[1].chances.tolist()


def test_noise_is_the_request_s_own(trained: Trained, backend: NativeBackend) -> None:
    """Where all tokens are as likely, noise alone decides, and both know it."""
    params = SamplingParams(temperature=100.0, seed=5, max_tokens=60, ignore_eos=True)
    answers = run(backend, random_texts(3, 40), params, proposer(backend))
    right, drafted = accepted(answers)
    assert drafted > 60
    assert right > 0.8 * drafted


def test_a_trimmed_vocabulary_guesses_its_own_tokens_only(trained: Trained, tmp_path: Path) -> None:
    kept = np.arange(1, VOCAB, 2, dtype=np.int32)
    head = TorchHead(trained.head.target, kept)
    backend = load(trained.checkpoint, head.save(tmp_path))
    text = trained.prompts[0]
    read(backend, text[:-1], [0])
    wanted, _ = head.chain(text, run_model(trained.checkpoint.model, [text]).states[0].float(), 1)
    assert guess(backend, text, [0], 1).token_ids[0].tolist() == wanted
    assert (guess(backend, text, [0], 8, params=replace(HOT, temperature=5.0)).token_ids % 2 == 1).all()
    # At a high temperature nearly all of a token's chance is its noise: half of the tokens can be guessed.
    params = SamplingParams(temperature=100.0, seed=5, max_tokens=80, ignore_eos=True)
    answers = run(backend, random_texts(3, 40), params, proposer(backend))
    plain = run(backend, random_texts(3, 40), params)
    assert token_ids(answers) == token_ids(plain)
    right, drafted = accepted(answers)
    assert 0.25 * drafted < right < 0.75 * drafted
    backend.close()


# --- what comes of it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [GREEDY, HOT], ids=["greedy", "sampled"])
def test_answers_are_those_without_it(
    backend: NativeBackend, trained: Trained, params: SamplingParams
) -> None:
    prompts = [*trained.prompts[:4], *random_texts(3, 100), [1]]
    plain = run(backend, prompts, params, prefix_cache=False)
    for config in ({}, {"max_batch_tokens": 24}, {"max_num_seqs": 2}, {"prefix_cache": False}):
        answers = run(backend, prompts, params, proposer(backend), **config)
        assert token_ids(answers) == token_ids(plain)
        assert accepted(answers)[1] > 50


def test_a_head_that_knows_the_text_is_nearly_always_right(backend: NativeBackend, trained: Trained) -> None:
    answers = run(backend, trained.prompts, GREEDY, proposer(backend))
    right, drafted = accepted(answers)
    assert drafted > 80
    assert right > 0.9 * drafted


def test_prefix_cache_hits_bring_their_states(backend: NativeBackend, trained: Trained) -> None:
    """A request on blocks that another one has filled is guessed as well as that one was."""
    engine = make_engine(WatchedBackend(backend), byte_tokenizer(VOCAB), Always(proposer(backend)))
    prompt = random_texts(1, 97)[0]
    counts = []
    for name in ("first", "second"):
        engine.submit(prompt, GREEDY, name)
        answer = drain(engine)[name, 0]
        assert answer.last is not None
        counts.append((answer.token_ids, answer.last.num_drafted, answer.last.num_accepted))
    assert answer.last.num_cached_tokens == 96
    assert counts[0] == counts[1]
    assert counts[0][1] > 0


def test_a_long_request_starts_again_from_a_window(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.draft_head is not None
    monkeypatch.setattr(backend.draft_head, "context", 128)
    head = proposer(backend)
    prompts = [random_texts(1, 300)[0]]
    params = replace(GREEDY, max_tokens=150)
    answers = run(backend, prompts, params, head)
    assert token_ids(answers) == token_ids(run(backend, prompts, params))
    assert accepted(answers)[1] > 100
    assert sorted(head._free_blocks) == list(range(backend.draft_head.num_blocks))


def test_without_room_for_all_some_go_without(trained: Trained) -> None:
    backend = load(trained.checkpoint, trained.folder, max_num_seqs=1)
    head = proposer(backend)
    head._free_blocks = [0, 1, 2, 3]
    plain = run(backend, trained.prompts, GREEDY, max_num_seqs=8)
    answers = run(backend, trained.prompts, GREEDY, head, max_num_seqs=8)
    assert token_ids(answers) == token_ids(plain)
    assert accepted(answers)[1] > 0
    assert sorted(head._free_blocks) == [0, 1, 2, 3]
    backend.close()


@relaxed
@given(scenario=scenarios(vocab_size=VOCAB, max_requests=4, max_tokens=40))
def test_no_schedule_changes_an_answer(backend: NativeBackend, scenario: Scenario) -> None:
    check_invariant(with_blocks(backend), byte_tokenizer(VOCAB), scenario, backend.draft_head)


def test_a_damaged_head_changes_nothing(trained: Trained, tmp_path: Path) -> None:
    damaged = TorchHead(trained.head.target, np.arange(VOCAB, dtype=np.int32))
    damaged.weights["output_norm"][:] = float("nan")
    backend = load(trained.checkpoint, damaged.save(tmp_path))
    for params in (GREEDY, HOT):
        plain = run(backend, trained.prompts, params)
        answers = run(backend, trained.prompts, params, proposer(backend))
        assert token_ids(answers) == token_ids(plain)
        assert accepted(answers) == (0, 0)
    backend.close()


# --- its place --------------------------------------------------------------------------------------------


def test_bad_batches_are_refused(backend: NativeBackend) -> None:
    text = list(range(1, 41))
    read(backend, text, [0, 1])
    with pytest.raises(BackendError, match="block id is out of range"):
        guess(backend, text, [0, backend.num_blocks])
    with pytest.raises(BackendError, match="table is too short"):
        guess(backend, text, [0])
    with pytest.raises(BackendError, match="token id is out of range"):
        guess(backend, [*text[:-1], VOCAB], [0, 1])
    assert guess(backend, text, [0, 1]).num_tokens[0] == 4


def test_hidden_states_come_out_of_the_kv_budget(trained: Trained) -> None:
    spec = open_checkpoint(trained.checkpoint.path).spec
    options = {"draft_head": str(trained.folder), "kv_cache_bytes": 1 << 20}
    config = resolve_engine_config(spec, options)
    states = spec.hidden_size * 2 * BLOCK_SIZE
    assert cache_bytes_per_block(spec, config) == kv_bytes_per_block(spec, "int8") + states
    backend = load(trained.checkpoint, trained.folder, kv_cache_bytes=1 << 20)
    assert backend.num_blocks == (1 << 20) // cache_bytes_per_block(spec, config)
    backend.close()


def test_closing_gives_the_memory_back(trained: Trained) -> None:
    def address_space() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

    before = address_space()
    backend = load(trained.checkpoint, trained.folder, kv_cache_bytes=1 << 30)
    head = backend.draft_head
    assert address_space() > before + (1 << 30)
    backend.close()
    assert address_space() < before + (1 << 28)
    with pytest.raises(BackendError, match="closed"):
        guess(backend, [1, 2], [0])
    assert head is not None


def test_only_the_native_backend_has_one(trained: Trained) -> None:
    opened = open_checkpoint(trained.checkpoint.path)
    for name in ("torch", "null"):
        config = resolve_engine_config(opened.spec, {"backend": name, "draft_head": str(trained.folder)})
        with pytest.raises(UsageError, match=f"draft_head: the {name} backend runs none"):
            backends.create(opened, config)
        backends.create(opened, replace(config, draft="off")).close()


def test_a_model_with_a_head_says_what_it_drafted(trained: Trained) -> None:
    options = {"kv_cache_bytes": 8 << 20, "draft_persist": False}
    with LLM(trained.checkpoint.path, draft="off", draft_head=str(trained.folder), **options) as llm:
        assert backends.draft_head(llm.backend) is None
        plain = llm.generate([trained.prompts[0]], GREEDY)[0]
    with LLM(trained.checkpoint.path, draft_head=str(trained.folder), **options) as llm:
        drafter = llm.loop.engine.drafter
        assert isinstance(drafter, DraftController)
        drafter.costs = CHEAP
        deltas = list(llm.stream(trained.prompts[0], GREEDY))
    assert tuple(t for delta in deltas for t in delta.token_ids) == plain.outputs[0].token_ids
    counts = {count.proposer: count for count in deltas[-1].draft_counts}
    assert counts["head"].num_accepted > 10


def test_the_draft_vocabulary_is_what_occurs_most() -> None:
    assert frequent_tokens([[5, 5, 9], [9, 5, 2]], 2, 12).tolist() == [5, 9]
    assert frequent_tokens([[5, 5, 9]], 4, 12).tolist() == [0, 1, 5, 9]
