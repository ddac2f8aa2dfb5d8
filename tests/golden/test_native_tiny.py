"""The native core against transformers on tiny random checkpoints: every family, variation and format.

Float matrices are multiplied as floats: only the KV cache (f16 here) and the order of additions differ.
Quantized matrices meet activations rounded to int8 (half a percent of noise each time, and a random model
forgives nothing), so logits differ by 2 to 5 % of their spread; `test_breaks_exceed_the_bounds` shows
that a break moves them further.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from golden.reference import exact_kl
from golden.test_oracle_tiny import NUM_TOKENS, token_ids_for
from outpace.backends import create
from outpace.backends.torch_backend import TorchBackend
from outpace.config import EngineOptions, resolve_engine_config
from outpace.models.checkpoint import open_checkpoint
from outpace.types import EngineConfig, KVFormat, ModelSpec
from stepping import run_logits
from tiny import VARIANTS, reference_logits
from tiny_gguf import FLOAT_TYPES, GGUF_QUANTS, K_QUANTS

pytestmark = pytest.mark.usefixtures("one_torch_thread")

FLOAT_BOUND = 2e-3  # root mean square error of the logits over their spread
QUANT_BOUND = 0.08
QUANT_KL = 0.012  # nats

TABLE = [7, 2, 5, 1, 3]  # blocks for NUM_TOKENS tokens, out of order

FLOAT_CASES = [
    *((variant, form, "F32") for variant in VARIANTS for form in ("gguf", "safetensors")),
    *((variant, "safetensors", dtype) for variant in ("llama", "qwen3") for dtype in FLOAT_TYPES[1:]),
    *(("llama", "gguf", dtype) for dtype in FLOAT_TYPES[1:]),
]

QUANT_CASES = [
    *((variant, dtype, None) for variant in ("llama", "qwen2-tied") for dtype in GGUF_QUANTS),
    *((variant, dtype, "Q6_K") for variant in ("llama-k", "qwen2-k") for dtype in K_QUANTS),
    *((variant, "Q4_0", None) for variant in ("llama-mha-odd", "mistral-window", "qwen3")),
]


def native_logits(path: Path, kv_format: KVFormat) -> np.ndarray:
    checkpoint = open_checkpoint(path)
    options = EngineOptions(kv_format=kv_format, kv_cache_bytes=1 << 22, num_threads=2)
    backend = create(checkpoint, resolve_engine_config(checkpoint.spec, options))
    try:
        ids = token_ids_for(backend.spec.vocab_size)
        return run_logits(backend, ids, chunk=64, block_table=TABLE)
    finally:
        backend.close()


def relative_error(expected: np.ndarray, ours: np.ndarray) -> float:
    """Root mean square error over the spread of the expected logits."""
    return float(np.sqrt(np.square(ours - expected).mean()) / expected.std())


@pytest.mark.parametrize(("variant", "form", "dtype"), FLOAT_CASES)
def test_float_checkpoints(tiny_checkpoint, variant, form, dtype) -> None:
    tiny = tiny_checkpoint(variant, form, dtype)
    expected = reference_logits(tiny.model, token_ids_for(tiny.model.config.vocab_size))
    error = relative_error(expected, native_logits(tiny.path, "f16"))
    assert error < FLOAT_BOUND


@pytest.mark.parametrize(("variant", "dtype", "output"), QUANT_CASES)
@pytest.mark.parametrize("kv_format", ["f16", "int8"])
def test_quantized_checkpoints(tiny_checkpoint, variant, dtype, output, kv_format) -> None:
    tiny = tiny_checkpoint(variant, "gguf", dtype, output)
    expected = reference_logits(tiny.model, token_ids_for(tiny.model.config.vocab_size))
    ours = native_logits(tiny.path, kv_format)
    assert relative_error(expected, ours) < QUANT_BOUND
    assert exact_kl(expected, ours).mean() < QUANT_KL


BREAKS: dict[str, tuple[str, Callable[[ModelSpec], dict[str, object]], float]] = {
    "rope kind": ("llama", lambda s: {"rope_kind": "half"}, QUANT_BOUND),
    "rope frequencies, 5 % off": (
        "llama",
        lambda s: {"rope_inv_freq": tuple(1.05 * f for f in s.rope_inv_freq)},
        QUANT_BOUND,
    ),
    "rope scaling left out": (
        "llama-rope-llama3",
        lambda s: {"rope_inv_freq": tuple(10000.0 ** (-2 * i / 64) for i in range(32))},
        QUANT_BOUND,
    ),
    "yarn's attention factor": ("llama-rope-yarn", lambda s: {"rope_attention_factor": 1.0}, QUANT_BOUND),
    "attention scale": ("llama", lambda s: {"attention_scale": 1.2 / s.head_dim**0.5}, QUANT_BOUND),
    "window off by one": ("mistral-window", lambda s: {"sliding_window": s.sliding_window - 1}, QUANT_BOUND),
    "no window": ("mistral-window", lambda s: {"sliding_window": 0}, QUANT_BOUND),
    "norm eps times 100": ("llama", lambda s: {"norm_eps": s.norm_eps * 100}, FLOAT_BOUND),
    "no norm of queries and keys": ("qwen3", lambda s: {"qk_norm": False}, QUANT_BOUND),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_breaks_exceed_the_bounds(tiny_checkpoint, broken) -> None:
    variant, change, bound = BREAKS[broken]
    tiny = tiny_checkpoint(variant)
    checkpoint = open_checkpoint(tiny.path)
    spec = dataclasses.replace(checkpoint.spec, **change(checkpoint.spec))
    oracle = TorchBackend(dataclasses.replace(checkpoint, spec=spec), EngineConfig(kv_cache_bytes=1 << 22))
    ids = token_ids_for(spec.vocab_size)
    assert len(ids) == NUM_TOKENS
    error = relative_error(reference_logits(tiny.model, ids), run_logits(oracle, ids))
    print(f"{broken}: {error:.4f}")
    assert error > 2 * bound
