"""The oracle's own promises: rows do not see each other, drafts, blocks, and its errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from outpace.backends.torch_backend import TorchBackend
from outpace.errors import BackendError, OutOfMemoryError, UsageError
from outpace.models.checkpoint import open_checkpoint
from outpace.types import SAMPLING_DTYPE, EngineConfig
from stepping import Rows, blocks_for, greedy, make_batch, run_logits

pytestmark = pytest.mark.usefixtures("one_torch_thread")

IDS = np.random.default_rng(3).integers(0, 300, 130).tolist()


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return open_checkpoint(tiny_checkpoint("mistral-window").path)


@pytest.fixture
def backend(checkpoint) -> TorchBackend:
    return TorchBackend(checkpoint, EngineConfig(kv_cache_bytes=1 << 21))


@pytest.fixture(scope="module")
def expected(checkpoint) -> np.ndarray:
    return run_logits(TorchBackend(checkpoint, EngineConfig(kv_cache_bytes=1 << 21)), IDS, chunk=len(IDS))


@pytest.mark.parametrize("chunk", [1, 7, 32, 100])
def test_chunks_change_no_bit(backend, expected, chunk) -> None:
    np.testing.assert_array_equal(run_logits(backend, IDS, chunk=chunk), expected)


def test_neighbours_change_no_bit(backend, expected) -> None:
    """Three requests at different places, in one batch, in scattered blocks."""
    run_logits(backend, IDS[:70], block_table=[9, 1, 4])
    run_logits(backend, IDS[:5], block_table=[6])
    batch = make_batch(
        [
            Rows(IDS[:40], 0, [2, 3], sample=False),
            Rows(IDS[70:90], 70, [9, 1, 4], sample=True),
            Rows(IDS[5:6], 5, [6]),
        ],
        want_logits=True,
    )
    output = backend.step(batch)
    np.testing.assert_array_equal(output.logits, expected[[*range(40), *range(70, 90), 5]])
    assert output.token_ids[1, 0] == expected[89].argmax()
    assert output.token_ids[2, 0] == expected[5].argmax()
    assert output.num_accepted.tolist() == [0, 0, 0]


def test_drafts_are_accepted_where_they_equal_plain_decoding(backend, expected) -> None:
    prompt = IDS[:50]
    table = list(range(blocks_for(60)))
    plain: list[int] = []
    run_logits(backend, prompt[:-1], block_table=table)
    for _ in range(5):
        known = prompt + plain
        output = backend.step(make_batch([Rows(known[-1:], len(known) - 1, table)]))
        plain.append(int(output.token_ids[0, 0]))
    for right in range(4):
        drafts = plain[:right] + [(token + 1) % 300 for token in plain[right:4]]
        rows = Rows(prompt[-1:] + drafts, len(prompt) - 1, table, num_draft_tokens=4)
        output = backend.step(make_batch([rows]))
        assert output.num_accepted[0] == right
        assert output.token_ids[0, : right + 1].tolist() == plain[: right + 1]


def test_log_probabilities_are_those_of_the_raw_logits(backend, expected) -> None:
    sampling = greedy(num_logprobs=3)
    output = backend.step(make_batch([Rows(IDS[:20], 0, [0], sampling=sampling)]))
    wide = expected[19].astype(np.float64)
    logprobs = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    order = np.argsort(-wide, kind="stable")[:3]
    assert output.top_token_ids[0, 0].tolist() == order.tolist()
    np.testing.assert_allclose(output.top_logprobs[0, 0], logprobs[order], rtol=1e-6)
    np.testing.assert_allclose(output.logprobs[0, 0], logprobs[order[0]], rtol=1e-6)
    assert output.logits is None


def test_sampling_depends_on_the_seed(backend) -> None:
    def picked(seed: int) -> int:
        sampling = greedy()
        sampling["temperature"], sampling["seed"] = 5.0, seed
        assert sampling.dtype == SAMPLING_DTYPE
        output = backend.step(make_batch([Rows(IDS[:20], 0, [0], sampling=sampling)]))
        return int(output.token_ids[0, 0])

    tokens = [picked(seed) for seed in range(8)]
    assert len(set(tokens)) > 1
    assert tokens == [picked(seed) for seed in range(8)]


def test_float32_weights_and_kv_cache_are_reported(backend, checkpoint) -> None:
    spec = checkpoint.spec
    assert backend.num_blocks == (1 << 21) // (2 * 3 * 2 * 32 * 32 * 4)
    all_weights = sum(np.prod(tensor.shape) * 4 for tensor in checkpoint.tensors.values())
    assert backend.weight_bytes == all_weights - spec.vocab_size * spec.hidden_size * 4
    assert backend.description["kv_format"] == "f32"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (Rows([5, 512], 0, [0]), "token id"),
        (Rows([-1], 0, [0]), "token id"),
        (Rows([5], 32, [0]), "request 0: its block table is too short for 33 tokens"),
        (Rows([5], 32, [0, -1]), "request 0: a block id"),
        (Rows([5], 0, [10_000]), "request 0: a block id"),
    ],
)
def test_a_bad_batch_is_refused(backend, rows, problem) -> None:
    with pytest.raises(BackendError, match=problem):
        backend.step(make_batch([rows]))


def test_closing_twice_is_safe_and_stepping_after_is_not(backend) -> None:
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.step(make_batch([Rows([5], 0, [0])]))


def test_settings_that_it_cannot_serve_are_refused(checkpoint) -> None:
    config = EngineConfig(kv_cache_bytes=1000)
    with pytest.raises(OutOfMemoryError, match="kv_cache_bytes is 1000, but one block"):
        TorchBackend(checkpoint, config)
    with pytest.raises(UsageError, match="weight_format"):
        TorchBackend(checkpoint, dataclasses.replace(config, weight_format="q4_0"))
