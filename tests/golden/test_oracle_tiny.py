"""The oracle against transformers on tiny random checkpoints: every family, every variation, every format.

Both compute in float32 on the same weights, so only the order of additions differs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outpace.backends.torch_backend import TorchBackend
from outpace.models.checkpoint import open_checkpoint
from outpace.types import EngineConfig
from stepping import run_logits
from tiny import VARIANTS, reference_logits, tiny_model, write_safetensors
from tiny_gguf import FLOAT_TYPES, GGUF_QUANTS, K_QUANTS

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NUM_TOKENS = 150
TOLERANCE = 1e-4  # of the largest logit

CASES = [
    *((variant, form, "F32", None) for variant in VARIANTS for form in ("gguf", "safetensors")),
    *((variant, "safetensors", dtype, None) for variant in ("llama", "qwen3") for dtype in FLOAT_TYPES[1:]),
    *(("llama", "gguf", dtype, None) for dtype in (*FLOAT_TYPES[1:], *GGUF_QUANTS)),
    *((variant, "gguf", dtype, "Q6_K") for variant in ("llama-k", "qwen2-k") for dtype in K_QUANTS),
]


def token_ids_for(vocab_size: int, count: int = NUM_TOKENS) -> list[int]:
    return np.random.default_rng(7).integers(0, vocab_size, count).tolist()


@pytest.mark.parametrize(("variant", "form", "dtype", "output"), CASES)
def test_logits_equal_those_of_transformers(tiny_checkpoint, variant, form, dtype, output) -> None:
    tiny = tiny_checkpoint(variant, form, dtype, output)
    backend = TorchBackend(open_checkpoint(tiny.path), EngineConfig(kv_cache_bytes=1 << 22))
    ids = token_ids_for(backend.spec.vocab_size)
    expected = reference_logits(tiny.model, ids)
    ours = run_logits(backend, ids, chunk=64, block_table=[7, 2, 5, 1, 3])
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() < TOLERANCE * np.abs(expected).max()


def test_shards_are_one_model(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    path = write_safetensors(model, tmp_path / "sharded", "BF16", shards=3)
    assert len(list(path.glob("*.safetensors"))) == 3
    backend = TorchBackend(open_checkpoint(path), EngineConfig(kv_cache_bytes=1 << 22))
    ids = token_ids_for(backend.spec.vocab_size, 40)
    expected = reference_logits(model, ids)
    assert np.abs(run_logits(backend, ids) - expected).max() < TOLERANCE * np.abs(expected).max()
