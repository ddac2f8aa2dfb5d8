"""What every backend must do with a step, whatever runs inside. All comparisons are bit for bit."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest
from backends_under_test import BACKENDS

from outpace.backends.native_backend import NativeBackend
from outpace.backends.reference_sampler import likeliest, log_softmax, sample
from outpace.engine.sampling import pack
from outpace.errors import BackendError
from outpace.types import Backend, SamplingParams, StepBatch, StepOutput
from stepping import Rows, blocks_for, make_batch, run_logits
from tiny_checkpoint import TinyFactory

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NUM_PROMPT = 70  # tokens; more than two blocks


@pytest.fixture(scope="module", params=list(BACKENDS))
def backend(request: pytest.FixtureRequest, tiny_checkpoint: TinyFactory) -> Iterator[Backend]:
    name = request.param
    if name != "null" and importlib.util.find_spec(f"outpace.backends.{name}_backend") is None:
        pytest.skip(f"NOT TESTED: there is no {name} backend in this installation")
    path = tiny_checkpoint("llama").path
    made = BACKENDS[name](path)
    yield made
    made.close()
    made.close()  # safe to call twice


@pytest.fixture
def prompt(backend: Backend) -> list[int]:
    return np.random.default_rng(5).integers(0, backend.spec.vocab_size, NUM_PROMPT).tolist()


def record(num_prompt_tokens: int = NUM_PROMPT, **params: object) -> np.ndarray:
    return pack(SamplingParams(**params), 0, num_prompt_tokens).record


GREEDY = {"temperature": 0.0}


def blocks(start: int, num_tokens: int) -> list[int]:
    return list(range(start, start + blocks_for(num_tokens)))


def chosen(out: StepOutput, request: int = 0) -> list[int]:
    return out.token_ids[request, : out.num_accepted[request] + 1].tolist()


def decode(backend: Backend, prompt: list[int], count: int, table: list[int], **params: object) -> list[int]:
    """Plain decoding of `count` tokens, the prompt in one step."""
    tokens = list(prompt)
    for _ in range(count):
        new = tokens if len(tokens) == len(prompt) else tokens[-1:]
        computed = len(tokens) - len(new)
        rows = Rows(new, computed, table, sampling=record(len(prompt), **params))
        tokens += chosen(backend.step(make_batch([rows])))
    return tokens[len(prompt) :]


def test_says_what_it_is(backend: Backend) -> None:
    assert backend.num_blocks >= 8
    assert backend.weight_bytes >= 0
    assert {"backend", "isa", "kv_format"} <= set(backend.description)


@pytest.mark.parametrize("chunk", [1, 7, 32, 33, 64])
def test_chunks_do_not_matter(backend: Backend, prompt: list[int], chunk: int) -> None:
    whole = run_logits(backend, prompt, chunk=len(prompt))
    np.testing.assert_array_equal(run_logits(backend, prompt, chunk=chunk), whole)


def test_which_blocks_do_not_matter(backend: Backend, prompt: list[int]) -> None:
    whole = run_logits(backend, prompt)
    table = [6, 1, 4]
    np.testing.assert_array_equal(run_logits(backend, prompt, block_table=table), whole)


def test_neighbours_do_not_matter(backend: Backend, prompt: list[int]) -> None:
    """A decode, a prompt chunk that samples and one that does not, in one step and alone."""
    parts = [
        Rows(prompt[40:41], 40, blocks(0, 41)),
        Rows(prompt[::-1], 0, blocks(2, NUM_PROMPT)),
        Rows(prompt[:33], 0, blocks(5, 33), sample=False),
    ]

    def fill() -> None:
        backend.step(make_batch([Rows(prompt[:40], 0, blocks(0, 40), sample=False)]))

    fill()
    together = backend.step(make_batch(parts, want_logits=True))
    assert together.logits is not None
    row = 0
    for i, part in enumerate(parts):
        fill()
        alone = backend.step(make_batch([part], want_logits=True))
        assert alone.logits is not None
        count = len(part.token_ids)
        np.testing.assert_array_equal(together.logits[row : row + count], alone.logits)
        if part.sample:
            assert chosen(together, i) == chosen(alone)
        row += count


def test_a_shared_block_is_read_by_all(backend: Backend, prompt: list[int]) -> None:
    run_logits(backend, prompt[:32], block_table=[7])
    tails = [prompt[32:50], prompt[50:60]]
    parts = [Rows(tail, 32, [7, 8 + i]) for i, tail in enumerate(tails)]
    out = backend.step(make_batch(parts, want_logits=True))
    expected = [run_logits(backend, prompt[:32] + tail)[32:] for tail in tails]
    np.testing.assert_array_equal(out.logits, np.concatenate(expected))


@pytest.mark.parametrize("num_right", [0, 1, 3, 5])
def test_drafts_are_accepted_up_to_the_first_wrong_one(
    backend: Backend, prompt: list[int], num_right: int
) -> None:
    plain = decode(backend, prompt, 8, blocks(0, NUM_PROMPT + 8), **GREEDY)
    draft = [*plain[1 : 1 + num_right], *((token + 1) % 512 for token in plain[1 + num_right : 6])]
    table = blocks(4, NUM_PROMPT + 8)
    backend.step(make_batch([Rows(prompt, 0, table)]))
    rows = Rows([plain[0], *draft], NUM_PROMPT, table, num_draft_tokens=5, sampling=record(**GREEDY))
    out = backend.step(make_batch([rows]))
    assert out.num_accepted[0] == num_right
    assert chosen(out) == plain[1 : num_right + 2]
    # What the rejected drafts left in the KV cache is overwritten before it is read.
    done = 1 + len(chosen(out))
    follow = Rows(plain[done - 1 : done], NUM_PROMPT + done - 1, table, sampling=record(**GREEDY))
    assert chosen(backend.step(make_batch([follow]))) == plain[done : done + 1]


SAMPLINGS: list[dict[str, object]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 0.3, "seed": 2**64 - 1},
    {"temperature": 1.3, "seed": 3, "top_k": 1},
    {"temperature": 1.3, "seed": 4, "top_k": 20, "top_p": 0.7},
    {"temperature": 2.0, "seed": 5, "top_p": 0.9},
    {"temperature": 1.5, "seed": 6, "min_p": 0.2},
    {"temperature": 0.9, "seed": 7, "top_k": 50, "top_p": 0.95, "min_p": 0.01},
    {"temperature": 0.0, "repetition_penalty": 1.7},
    {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.7},
    {"temperature": 1.1, "seed": 8, "repetition_penalty": 0.6, "frequency_penalty": -1.0, "top_p": 0.8},
]


@pytest.mark.parametrize("params", SAMPLINGS, ids=str)
def test_samples_by_the_letter(backend: Backend, prompt: list[int], params: dict[str, object]) -> None:
    """The choice is what the reference makes of the backend's own logits; drafts see the ones before them."""
    table = blocks(0, NUM_PROMPT)
    num_prompt = 50  # the rest is output
    packed = pack(SamplingParams(**params), 0, num_prompt)
    history = np.array(prompt, np.int32) if packed.needs_history else None
    batch = make_batch([Rows(prompt, 0, table, sampling=packed.record)], want_logits=True)
    batch.history = [history] if packed.needs_history else None
    out = backend.step(batch)
    assert out.logits is not None
    first = sample(out.logits[-1], packed.record[0], NUM_PROMPT, history)
    assert chosen(out) == [first]
    # Again, with that token as a draft at the end: the bonus token knows it.
    batch = make_batch(
        [Rows([prompt[-1], first], NUM_PROMPT - 1, table, 1, sampling=packed.record)], want_logits=True
    )
    batch.history = [history] if packed.needs_history else None
    out = backend.step(batch)
    assert out.logits is not None
    longer = None if history is None else np.append(history, np.int32(first))
    assert chosen(out) == [first, sample(out.logits[-1], packed.record[0], NUM_PROMPT + 1, longer)]


def test_the_seed_and_the_position_decide(backend: Backend, prompt: list[int]) -> None:
    table = blocks(0, NUM_PROMPT + 12)
    runs = [decode(backend, prompt, 12, table, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_logit_bias_moves_the_choice(backend: Backend, prompt: list[int]) -> None:
    params = SamplingParams(temperature=0, logit_bias={17: 100.0, 18: -100.0}, logprobs=0)
    packed = pack(params, 0, NUM_PROMPT)
    batch = make_batch([Rows(prompt, 0, blocks(0, NUM_PROMPT), sampling=packed.record)], want_logits=True)
    batch.logit_bias = [packed.logit_bias]
    out = backend.step(batch)
    assert chosen(out) == [17]
    assert out.logits is not None
    assert out.logprobs is not None
    # Log probabilities are of the raw logits, which the bias does not touch.
    np.testing.assert_allclose(out.logprobs[0, 0], log_softmax(out.logits[-1], np.array([17]))[0], atol=1e-5)


def only(token_ids: list[int], vocab_size: int) -> np.ndarray:
    """A row of a token mask."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[token_ids] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_mask_is_of_its_row(backend: Backend, prompt: list[int], temperature: float) -> None:
    """Two drafts, the first within its mask: the third row's choice is within the third mask."""
    vocab_size, last = backend.spec.vocab_size, backend.spec.vocab_size - 1
    free = only(list(range(vocab_size)), vocab_size)
    rows = Rows(
        [*prompt, 7, last],
        0,
        blocks(0, NUM_PROMPT + 2),
        num_draft_tokens=2,
        sampling=record(temperature=temperature, seed=1),
    )
    batch = make_batch([rows])
    masks = [only(token_ids, vocab_size) for token_ids in ([7], [last], [3, 5])]
    batch.token_masks = [np.concatenate(masks)]
    out = backend.step(batch)
    assert chosen(out)[:2] == [7, last]
    assert chosen(out)[2] in {3, 5}
    batch.token_masks = [np.concatenate([only([8], vocab_size), free, free])]
    assert chosen(backend.step(batch)) == [8]
    plain = make_batch([rows])
    batch.token_masks = [np.concatenate([free, free, free])]
    assert chosen(backend.step(batch)) == chosen(backend.step(plain))


def test_a_mask_of_another_size_is_refused(backend: Backend, prompt: list[int]) -> None:
    if not isinstance(backend, NativeBackend):
        pytest.skip("not applicable: the others trust the packer")
    batch = make_batch([Rows(prompt, 0, blocks(0, NUM_PROMPT), sampling=record())])
    batch.token_masks = [np.zeros(1, np.uint32)]
    with pytest.raises(BackendError, match="token mask"):
        backend.step(batch)


def test_logprobs_of_every_choice(backend: Backend, prompt: list[int]) -> None:
    """Two requests that want different numbers of them, one with an accepted draft."""
    plain = decode(backend, prompt, 2, blocks(0, NUM_PROMPT + 2), **GREEDY)
    rows = [prompt[-1], plain[0]]
    parts = [
        Rows(rows, NUM_PROMPT - 1, blocks(0, NUM_PROMPT + 2), 1, sampling=record(**GREEDY, logprobs=3)),
        Rows(prompt[:20], 0, blocks(4, 20), sampling=record(20, **GREEDY, logprobs=0)),
    ]
    out = backend.step(make_batch(parts, want_logits=True))
    assert chosen(out) == plain
    assert out.logits is not None
    assert out.logprobs is not None
    assert out.top_token_ids is not None
    assert out.top_logprobs is not None
    for i in range(2):
        row = out.logits[i]
        top = likeliest(row, 3)
        np.testing.assert_array_equal(out.top_token_ids[0, i, :3], top)
        np.testing.assert_allclose(out.top_logprobs[0, i, :3], log_softmax(row, top), atol=1e-5)
        np.testing.assert_allclose(
            out.logprobs[0, i], log_softmax(row, out.token_ids[0, i : i + 1])[0], atol=1e-5
        )
    last = out.logits[-1]
    np.testing.assert_allclose(out.logprobs[1, 0], log_softmax(last, out.token_ids[1, :1])[0], atol=1e-5)


def test_no_logprobs_and_no_logits_unless_asked(backend: Backend, prompt: list[int]) -> None:
    out = backend.step(make_batch([Rows(prompt, 0, blocks(0, NUM_PROMPT))]))
    assert out.logprobs is None
    assert out.logits is None


def test_does_not_change_or_keep_the_batch(backend: Backend, prompt: list[int]) -> None:
    batch = make_batch([Rows(prompt, 0, blocks(0, NUM_PROMPT))])
    before = {name: np.copy(getattr(batch, name)) for name in ("token_ids", "block_tables", "row_start")}
    first = backend.step(batch)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(batch, name), array)
    expected = chosen(first)
    other: StepBatch = make_batch([Rows(prompt[::-1], 0, blocks(3, NUM_PROMPT))])
    backend.step(other)
    assert chosen(first) == expected, "an output outlives the next step"
