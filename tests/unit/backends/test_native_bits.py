"""The native core's bits: every tier, thread count, chunk and neighbour gives the same logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from outpace._native import available_isas
from outpace.backends.native_backend import NativeBackend
from outpace.config import resolve_engine_config
from outpace.errors import BackendError, OutOfMemoryError, UsageError
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.types import EngineConfig, KVFormat
from stepping import Rows, blocks_for, make_batch, run_logits
from tiny_checkpoint import TinyFactory

FORMATS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
SMALL_KV = 16 << 20


def load(
    checkpoint: Checkpoint, *, isa: str = "auto", threads: int = 2, kv_format: KVFormat = "int8"
) -> NativeBackend:
    config = resolve_engine_config(
        checkpoint.spec, {"kv_cache_bytes": SMALL_KV, "isa": isa, "num_threads": threads}
    )
    return NativeBackend(checkpoint, replace(config, kv_format=kv_format))


def logits_of(checkpoint: Checkpoint, token_ids: list[int], chunk: int, **options: object) -> np.ndarray:
    backend = load(checkpoint, **options)  # type: ignore[arg-type]  # options are those of load
    try:
        return run_logits(backend, token_ids, chunk=chunk)
    finally:
        backend.close()


def some_tokens(vocab_size: int, count: int) -> list[int]:
    return np.random.default_rng(3).integers(0, vocab_size, count).tolist()


@pytest.mark.parametrize("dtype", FORMATS)
def test_tiers_threads_and_chunks_give_the_same_bits(tiny_checkpoint: TinyFactory, dtype: str) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("qwen2-k", dtype=dtype).path)
    tokens = some_tokens(checkpoint.spec.vocab_size, 70)
    expected = logits_of(checkpoint, tokens, 70, isa="portable", threads=1)
    assert np.isfinite(expected).all()
    for isa in available_isas():
        for threads, chunk in ((1, 1), (2, 33), (3, 70)):
            got = logits_of(checkpoint, tokens, chunk, isa=isa, threads=threads)
            np.testing.assert_array_equal(
                got, expected, err_msg=f"{isa}, {threads} threads, chunks of {chunk}"
            )


@pytest.mark.parametrize("kv_format", ["int8", "f16"])
def test_a_real_model_gives_the_same_bits_on_every_tier(model_135m: Path, kv_format: KVFormat) -> None:
    """At positions past several chunks of attention, alone and beside another request."""
    checkpoint = open_checkpoint(model_135m)
    tokens = some_tokens(checkpoint.spec.vocab_size, 290)  # chunks end at 128 and 256
    last: dict[str, np.ndarray] = {}
    for isa in available_isas():
        backend = load(checkpoint, isa=isa, threads=2, kv_format=kv_format)
        table = list(range(blocks_for(len(tokens))))
        backend.step(make_batch([Rows(tokens[:-8], 0, table, sample=False)]))
        tail = Rows(tokens[-8:], len(tokens) - 8, table)
        alone = backend.step(make_batch([tail], want_logits=True)).logits
        other = Rows(tokens[:5], 0, [len(table)])
        both = backend.step(make_batch([other, tail], want_logits=True)).logits
        backend.close()
        assert alone is not None
        assert both is not None
        np.testing.assert_array_equal(both[5:], alone)
        last[isa] = alone
    for isa, got in last.items():
        np.testing.assert_array_equal(got, last["portable"], err_msg=isa)


def test_an_isa_that_this_machine_lacks_is_refused_by_name(tiny_checkpoint: TinyFactory) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama").path)
    with pytest.raises(UsageError, match=r"^isa 'neon9'.*auto.*portable"):
        load(checkpoint, isa="neon9")


def test_weights_take_the_bytes_of_the_file(model_135m: Path) -> None:
    checkpoint = open_checkpoint(model_135m)
    backend = load(checkpoint)
    in_file = sum(tensor.num_bytes for tensor in checkpoint.tensors.values())
    assert backend.description["memory_bytes"] <= in_file * 1.001
    assert backend.weight_bytes <= in_file * 1.001
    backend.close()


def test_a_closed_backend_says_so(tiny_checkpoint: TinyFactory) -> None:
    backend = load(open_checkpoint(tiny_checkpoint("llama").path))
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        run_logits(backend, [1, 2, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [10**6]}, "token id is out of range"),
        ({"token_ids": [-1]}, "token id is out of range"),
        ({"block_table": [10**6]}, "block id is out of range"),
        ({"block_table": [-1]}, "block id is out of range"),
        ({"num_computed_tokens": 32}, "block table is too short"),
        ({"num_computed_tokens": -1}, "negative positions"),
        ({"num_draft_tokens": 1}, "more drafts than rows"),
    ],
)
def test_a_batch_that_breaks_the_contract_is_refused_before_it_runs(
    tiny_checkpoint: TinyFactory, change: dict[str, object], message: str
) -> None:
    backend = load(open_checkpoint(tiny_checkpoint("llama").path))
    fields: dict[str, object] = {"token_ids": [1], "num_computed_tokens": 0, "block_table": [0], **change}
    with pytest.raises(BackendError, match=message):
        backend.step(make_batch([Rows(**fields)]))  # type: ignore[arg-type]  # wrong on purpose
    backend.step(make_batch([Rows([1], 0, [0])]))  # still works
    backend.close()


def test_the_budget_of_a_config_is_what_the_core_reserves(tiny_checkpoint: TinyFactory) -> None:
    from dataclasses import asdict

    from outpace import _native
    from outpace.config import kv_bytes_per_block

    formats: tuple[KVFormat, ...] = ("int8", "f16")
    for variant in ("llama", "llama-ragged", "qwen2-k"):
        spec = open_checkpoint(tiny_checkpoint(variant).path).spec
        for kv_format in formats:
            native = _native.kv_bytes_per_block(asdict(spec), {"kv_format": kv_format})
            assert native == kv_bytes_per_block(spec, kv_format)


def test_too_many_rows_are_refused(tiny_checkpoint: TinyFactory) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama").path)
    config: EngineConfig = resolve_engine_config(
        checkpoint.spec, {"kv_cache_bytes": SMALL_KV, "max_batch_tokens": 4}
    )
    backend = NativeBackend(checkpoint, config)
    with pytest.raises(BackendError, match=r"num_rows is not in 1\.\.4"):
        backend.step(make_batch([Rows([1] * 5, 0, [0])]))
    backend.close()


def test_too_little_memory_is_said_before_anything_is_read(
    tiny_checkpoint: TinyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama").path)
    monkeypatch.setattr("outpace.backends.native_backend.available_memory", lambda: 1 << 20)
    with pytest.raises(
        OutOfMemoryError, match=r"16 MB of KV cache.*1 MB of memory are free; lower --kv-cache"
    ):
        load(checkpoint)
