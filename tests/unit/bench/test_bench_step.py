"""`bench step`'s driver: what its batches hold, and what fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine_harness import null_backend, null_spec
from outpace.backends.null_backend import NullBackend
from outpace.bench import step
from outpace.bench.step import measure_decode, prefill_operations, quotient
from outpace.engine.step_driver import StepDriver
from outpace.types import BLOCK_SIZE, StepBatch, StepOutput


@contextmanager
def recorded(backend: NullBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StepBatch]]:
    batches: list[StepBatch] = []
    inner = backend.step

    def keep(batch: StepBatch) -> StepOutput:
        batches.append(batch)
        return inner(batch)

    with monkeypatch.context() as patch:
        patch.setattr(backend, "step", keep)
        yield batches


def test_requests_have_blocks_of_their_own_and_each_block_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = null_backend(64)
    driver = StepDriver(backend, max_batch_tokens=4)
    with recorded(backend, monkeypatch) as batches:
        driver.fill(3, 70)
        driver.decode(3, 70)
    *fills, decode = batches
    assert all(batch.num_rows <= 4 for batch in fills)
    written: list[tuple[int, int]] = []
    for batch in fills:
        assert not batch.sample.any()
        for table, position in zip(
            batch.block_tables.tolist(), batch.num_computed_tokens.tolist(), strict=True
        ):
            written.append((table[position // BLOCK_SIZE], position))
    assert written == [(request * 3 + i, [31, 63, 69][i]) for request in range(3) for i in range(3)]
    assert decode.num_computed_tokens.tolist() == [69, 69, 69]  # with the row itself: 70 tokens
    assert decode.block_tables.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert decode.sample.all()
    assert decode.row_start.tolist() == [0, 1, 2, 3]


def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "MIN_SECONDS", 0.0)
    driver = StepDriver(null_backend(16, max_context=400), 64)
    assert driver.fits(1, 400)
    assert not driver.fits(1, 401)  # the model's context
    assert driver.fits(2, 8 * BLOCK_SIZE)
    assert not driver.fits(2, 8 * BLOCK_SIZE + 1)  # the cache's blocks
    speed = measure_decode(driver, 2, 8 * BLOCK_SIZE)
    assert speed is not None
    assert speed > 0
    assert measure_decode(driver, 3, 8 * BLOCK_SIZE) is None


def test_the_last_token_of_the_context_can_be_decoded() -> None:
    driver = StepDriver(null_backend(64, max_context=512), 64)
    driver.fill(1, 512)
    assert driver.decode(1, 512) > 0


def test_quotients_of_nothing() -> None:
    assert quotient(3.0, 2.0) == 1.5
    assert quotient(None, 2.0) is None
    assert quotient(3.0, None) is None


def test_the_head_multiplies_one_row_of_a_prompt() -> None:
    spec = null_spec(vocab_size=100, max_context=64)
    head = 100 * spec.hidden_size
    layers = prefill_operations(spec, 1) - 2 * head
    assert prefill_operations(spec, 9) == 9 * layers + 2 * head
    attention = spec.hidden_size * spec.head_dim * 2 * (spec.num_heads + spec.num_kv_heads)
    assert layers == 2 * spec.num_layers * (attention + 3 * spec.hidden_size * spec.intermediate_size)
