"""What engine tests share: a tokenizer without a model, backends that watch or fail, runs of an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from outpace.backends.null_backend import NullBackend
from outpace.engine.engine import Engine
from outpace.errors import BackendError
from outpace.text.tokenizer import Tokenizer
from outpace.types import (
    BLOCK_SIZE,
    Backend,
    EngineConfig,
    FinishReason,
    ModelSpec,
    SamplingParams,
    StepBatch,
    StepOutput,
    TokenDelta,
    TokenLogprob,
)

BackendFactory = Callable[[int], Backend]
"""Makes a backend with (at least) so many KV blocks; see `with_blocks` for one that is shared."""


class ByteCodec:
    """Token i is byte i, and 0 ends: random tokens make broken characters, as a detokenizer must expect."""

    bos_id = None
    eos_ids = frozenset({0})
    special_ids = frozenset({0})
    strips_leading_space = False

    def __init__(self, size: int = 256) -> None:
        self.size = size
        self.texts = [repr(bytes([token_id % 256])) for token_id in range(size)]

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())

    def token_id(self, text: str) -> int | None:
        return ord(text) if len(text) == 1 and ord(text) < 128 else None

    def token_text(self, token_id: int) -> str:
        return self.texts[token_id]

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id % 256])


def byte_tokenizer(vocab_size: int = 256) -> Tokenizer:
    """A real Tokenizer over bytes, for any vocabulary."""
    return Tokenizer(ByteCodec(vocab_size))


def null_spec(vocab_size: int = 256, max_context: int = 4096) -> ModelSpec:
    return ModelSpec(
        architecture="null",
        vocab_size=vocab_size,
        hidden_size=32,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=32,
        intermediate_size=32,
        max_context=max_context,
        norm_eps=1e-5,
    )


def null_backend(num_blocks: int = 64, vocab_size: int = 256, max_context: int = 4096) -> NullBackend:
    return NullBackend.from_spec(null_spec(vocab_size, max_context), num_blocks)


class WatchedBackend:
    """Passes steps on, each batch checked against the contract. May show fewer blocks than there are."""

    def __init__(self, inner: Backend, num_blocks: int | None = None) -> None:
        self.inner = inner
        self.spec = inner.spec
        self.num_blocks = num_blocks or inner.num_blocks
        self.weight_bytes = inner.weight_bytes
        self.description = inner.description
        self.kv_blocks = inner.kv_blocks
        self.state_blocks = inner.state_blocks
        self.batches: list[tuple[int, int]] = []  # (requests, rows) of each step
        self.max_rows = 1 << 30

    def step(self, batch: StepBatch) -> StepOutput:
        check_batch(batch, self.num_blocks, self.spec.vocab_size)
        assert batch.num_rows <= self.max_rows
        self.batches.append((batch.num_requests, batch.num_rows))
        return self.inner.step(batch)

    def close(self) -> None:
        self.inner.close()


def with_blocks(backend: Backend) -> BackendFactory:
    """A factory over one shared backend, for models that are dear to load; old KV content stays in it."""

    def make(num_blocks: int) -> Backend:
        assert num_blocks <= backend.num_blocks
        return WatchedBackend(backend, num_blocks)

    return make


class FailingBackend(WatchedBackend):
    """Fails at given steps, after it has written garbage into the batch's new slots."""

    def __init__(self, inner: Backend, failing_steps: Iterable[int], num_blocks: int | None = None) -> None:
        super().__init__(inner, num_blocks)
        self.failing_steps = frozenset(failing_steps)

    def step(self, batch: StepBatch) -> StepOutput:
        if len(self.batches) in self.failing_steps:
            batch.token_ids[:] = (batch.token_ids + 1) % self.spec.vocab_size
            super().step(batch)
            raise BackendError("this step fails on purpose")
        return super().step(batch)


def check_batch(batch: StepBatch, num_blocks: int, vocab_size: int) -> None:
    """Assert what `StepBatch` promises; no slot may be written twice, nor read by others while written."""
    n = batch.num_requests
    assert n > 0
    assert batch.row_start[0] == 0
    assert batch.row_start[n] == batch.num_rows
    assert batch.token_ids.min() >= 0
    assert batch.token_ids.max() < vocab_size
    written: dict[int, int] = {}
    read: list[set[int]] = []
    check_parents(batch)
    for array in (batch.token_ids, batch.block_tables, batch.row_start, batch.sampling):
        assert array.flags.c_contiguous
    for i in range(n):
        rows = int(batch.row_start[i + 1] - batch.row_start[i])
        first = int(batch.num_computed_tokens[i])
        assert 0 <= batch.num_draft_tokens[i] < rows
        assert batch.sample[i] or batch.num_draft_tokens[i] == 0
        used = -(-(first + rows) // BLOCK_SIZE)
        table = batch.block_tables[i].tolist()
        assert all(0 <= block < num_blocks for block in table[:used])
        assert len(set(table[:used])) == used
        for block in table[first // BLOCK_SIZE : used]:
            assert block not in written, "two requests write to one block"
            written[block] = i
        read.append(set(table[:used]))
        history = None if batch.history is None else batch.history[i]
        if history is not None and batch.sample[i]:
            assert len(history) == first + rows - batch.num_draft_tokens[i]
    for block, writer in written.items():
        assert all(i == writer or block not in blocks for i, blocks in enumerate(read))


def check_parents(batch: StepBatch) -> None:
    """Assert what `StepBatch.draft_parents` promises."""
    if batch.draft_parents is None:
        return
    assert batch.draft_parents.shape == batch.token_ids.shape
    branches = False
    for i in range(batch.num_requests):
        end, count = int(batch.row_start[i + 1]), int(batch.num_draft_tokens[i])
        parents = batch.draft_parents[end - count : end].tolist()
        assert all(-1 <= parent < index for index, parent in enumerate(parents))
        branches |= parents != list(range(-1, count - 1))
    assert branches, "chains need no parents"


@dataclass
class Answer:
    """What one choice got."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    last: TokenDelta | None = None

    def add(self, delta: TokenDelta) -> None:
        assert self.finish_reason is None, "nothing comes after the end"
        self.token_ids += delta.token_ids
        self.text += delta.text
        self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason
        self.error = delta.error
        self.last = delta
        assert delta.num_output_tokens == len(self.token_ids)


Answers = dict[tuple[str, int], Answer]


def collect(answers: Answers, deltas: Iterable[TokenDelta]) -> None:
    for delta in deltas:
        answers.setdefault((delta.request_id, delta.index), Answer()).add(delta)


def drain(engine: Engine, answers: Answers | None = None, max_steps: int = 20_000) -> Answers:
    """Step until nothing is left."""
    answers = {} if answers is None else answers
    for _ in range(max_steps):
        if not engine.has_work:
            return answers
        collect(answers, engine.step())
    raise AssertionError("the engine does not come to an end")


def make_engine(
    backend: Backend | None = None, tokenizer: Tokenizer | None = None, drafter: object = None, **config
) -> Engine:
    """An engine over the null backend, unless told otherwise."""
    max_waiting, store = config.pop("max_waiting", 1024), config.pop("store", None)
    return Engine(
        backend or WatchedBackend(null_backend()),
        tokenizer or byte_tokenizer(),
        EngineConfig(**config),
        drafter,
        store=store,
        max_waiting=max_waiting,
    )


def run(
    engine: Engine, prompts: Mapping[str, Sequence[int]] | Sequence[int], params: SamplingParams
) -> Answers:
    """Submit one prompt (as request "r") or several, and drain."""
    if not isinstance(prompts, Mapping):
        prompts = {"r": prompts}
    for request_id, prompt in prompts.items():
        engine.submit(prompt, params, request_id)
    return drain(engine)


def prompt_of(length: int, seed: int = 0, vocab_size: int = 256) -> list[int]:
    """A random prompt."""
    return np.random.default_rng(seed).integers(1, vocab_size, length).tolist()
