"""Prompts in bf16: the same numbers for any chunks and company, near float32, and only where asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from outpace import _native, backends
from outpace.backends.torch_backend import TorchBackend
from outpace.config import resolve_engine_config
from outpace.errors import UsageError
from outpace.models.checkpoint import open_checkpoint
from outpace.types import Backend, EngineConfig, Prefill
from stepping import Rows, blocks_for, greedy, make_batch, prompt, run_logits
from tiny_checkpoint import TinyFactory

needs_tiles = pytest.mark.skipif(not _native.has_fast_prefill("auto"), reason="prefill='fast' needs AMX")
TEXT = np.random.default_rng(3).integers(0, 512, 150).tolist()


def oracle(factory: TinyFactory, variant: str, dtype: str) -> np.ndarray:
    """The text's logits by torch in float32, on the same dequantized weights."""
    return run_logits(TorchBackend(open_checkpoint(factory(variant, dtype=dtype).path), EngineConfig()), TEXT)


def load(factory: TinyFactory, variant: str, dtype: str, prefill: Prefill, isa: str = "auto") -> Backend:
    checkpoint = open_checkpoint(factory(variant, dtype=dtype).path)
    options = {"prefill": prefill, "isa": isa, "kv_cache_bytes": 4 << 20, "num_threads": 2}
    return backends.create(checkpoint, resolve_engine_config(checkpoint.spec, options))


@pytest.fixture(scope="module", params=["qwen2 Q8_0", "qwen2-k Q4_K"])
def pair(request: pytest.FixtureRequest, tiny_checkpoint: TinyFactory) -> Iterator[tuple[Backend, Backend]]:
    """The same model with exact and with fast prefill."""
    variant, dtype = request.param.split()
    exact, fast = (load(tiny_checkpoint, variant, dtype, prefill) for prefill in ("exact", "fast"))
    yield exact, fast
    exact.close()
    fast.close()


@needs_tiles
def test_chunks_and_company_change_no_bit(pair: tuple[Backend, Backend]) -> None:
    _, fast = pair
    whole = run_logits(fast, TEXT)
    for chunk in (1, 7, 16, 33):
        assert np.array_equal(run_logits(fast, TEXT, chunk=chunk), whole), f"chunks of {chunk}"
    # Beside another prompt and a request that generates.
    table = list(range(blocks_for(len(TEXT))))
    beside = [table[-1] + 1 + i for i in range(2 * len(table))]
    rows = [
        Rows(TEXT[:40], 0, beside, sample=False, sampling=prompt(0)),
        Rows(TEXT, 0, table, sample=False, sampling=prompt(len(TEXT))),
        Rows(TEXT[:9], 0, beside[len(table) :], sample=False, sampling=prompt(5)),
    ]
    logits = fast.step(make_batch(rows, want_logits=True)).logits
    assert logits is not None
    assert np.array_equal(logits[40 : 40 + len(TEXT)], whole)


@needs_tiles
@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize(("variant", "dtype"), [("qwen2", "Q8_0"), ("qwen2-k", "Q4_K"), ("qwen2", "F16")])
def test_rounded_prompts_are_near_float32(tiny_checkpoint: TinyFactory, variant: str, dtype: str) -> None:
    reference = oracle(tiny_checkpoint, variant, dtype)
    backend = load(tiny_checkpoint, variant, dtype, "fast")
    error = np.abs(run_logits(backend, TEXT) - reference)
    backend.close()
    assert 0.0 < error.mean() < 0.06 * reference.std()
    assert error.max() < 0.5 * reference.std()


@needs_tiles
def test_prompts_are_rounded_and_nothing_else_is(pair: tuple[Backend, Backend]) -> None:
    exact, fast = pair
    expected = run_logits(exact, TEXT)
    assert not np.array_equal(run_logits(fast, TEXT), expected)
    for backend in pair:
        rows = Rows(TEXT, 0, list(range(blocks_for(len(TEXT)))), sample=False, sampling=greedy())
        logits = backend.step(make_batch([rows], want_logits=True)).logits
        assert logits is not None
        assert np.array_equal(logits, expected)


@needs_tiles
def test_an_answer_is_generated_from_the_rounded_prompt(pair: tuple[Backend, Backend]) -> None:
    """The tokens after the prompt read its KV cache, and are themselves computed exactly."""
    _, fast = pair
    table = list(range(blocks_for(len(TEXT))))

    def run(cuts: list[int]) -> np.ndarray:
        found = []
        for start, end in zip([0, *cuts], [*cuts, len(TEXT)], strict=True):
            rows = Rows(TEXT[start:end], start, table, sample=False, sampling=prompt(100))
            logits = fast.step(make_batch([rows], want_logits=True)).logits
            assert logits is not None
            found.append(logits)
        return np.concatenate(found)

    assert np.array_equal(run([100]), run([60, 130]))


def test_a_tier_without_tiles_refuses(tiny_checkpoint: TinyFactory) -> None:
    with pytest.raises(UsageError, match="prefill='fast' needs the tile instructions of the tier amx"):
        load(tiny_checkpoint, "qwen2", "Q8_0", "fast", isa="portable")
