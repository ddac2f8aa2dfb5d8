"""Inverse frequencies against transformers' own functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from outpace.models.rope import RopeScaling, inverse_frequencies

# One unit in the last place of float32, and a little: torch's power and ours may round differently.
ULPS = 4 * np.finfo(np.float32).eps


def theirs(head_dim: int, context: int, parameters: dict[str, Any]) -> tuple[np.ndarray, float]:
    config = LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        max_position_embeddings=context,
        rope_parameters=parameters,
    )
    if parameters["rope_type"] == "default":
        rope = LlamaRotaryEmbedding(config)
        return rope.inv_freq.numpy(), rope.attention_scaling
    frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    return frequencies.numpy(), factor


def compare(
    head_dim: int,
    theta: float,
    scaling: RopeScaling,
    context: int,
    tolerance: float = ULPS,
    **parameters: Any,
) -> None:
    ours, factor = inverse_frequencies(theta, head_dim, scaling)
    expected, expected_factor = theirs(head_dim, context, {"rope_theta": theta, **parameters})
    assert ours.dtype == np.float32
    assert ours.shape == (head_dim // 2,)
    np.testing.assert_allclose(ours, expected, rtol=tolerance)
    assert factor == pytest.approx(expected_factor, rel=1e-12)


dims = st.sampled_from([2, 8, 32, 64, 80, 96, 128, 256])
thetas = st.sampled_from([500.0, 10000.0, 100000.0, 500000.0, 1e6, 5e6])
few = settings(max_examples=60, deadline=None)


@few
@given(dims, thetas)
def test_default(head_dim: int, theta: float) -> None:
    compare(head_dim, theta, RopeScaling(), 4096, rope_type="default")


@few
@given(dims, thetas, st.floats(1, 64))
def test_linear(head_dim: int, theta: float, factor: float) -> None:
    compare(
        head_dim, theta, RopeScaling(kind="linear", factor=factor), 4096, rope_type="linear", factor=factor
    )


@few
@given(
    dims, thetas, st.floats(1, 64), st.floats(0.5, 2), st.floats(2.5, 8), st.sampled_from([64, 2048, 8192])
)
def test_llama3(head_dim: int, theta: float, factor: float, low: float, high: float, original: int) -> None:
    scaling = RopeScaling(
        kind="llama3", factor=factor, original_context=original, low_freq_factor=low, high_freq_factor=high
    )
    frequencies = inverse_frequencies(theta, head_dim, RopeScaling())[0]
    waves = 2 * np.pi / frequencies.astype(np.float64)  # where a wave meets a limit, the last bit decides
    for limit in (original / low, original / high):
        assume(np.all(np.abs(waves / limit - 1) > 1e-6))
    compare(
        head_dim,
        theta,
        scaling,
        original * 4,
        tolerance=8 * ULPS,  # the interpolation weight is a difference of near numbers
        rope_type="llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original,
    )


@few
@given(
    dims.filter(lambda dim: dim > 2),
    thetas,
    st.floats(1, 64),
    st.sampled_from([64, 4096, 32768]),
    st.booleans(),
    st.sampled_from([{}, {"attention_factor": 1.3}, {"mscale": 1.0, "mscale_all_dim": 0.7}, {"mscale": 0.8}]),
    st.sampled_from([{}, {"beta_fast": 16.0, "beta_slow": 2.0}]),
)
def test_yarn(
    head_dim: int,
    theta: float,
    factor: float,
    original: int,
    truncate: bool,
    attention: dict[str, float],
    betas: dict[str, float],
) -> None:
    scaling = RopeScaling(
        kind="yarn", factor=factor, original_context=original, truncate=truncate, **attention, **betas
    )
    compare(
        head_dim,
        theta,
        scaling,
        original * 4,
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        truncate=truncate,
        **attention,
        **betas,
    )


def test_published_models() -> None:
    """Llama 3.2 and Qwen2.5 with YaRN, as their config.json state them."""
    compare(
        64,
        500000.0,
        RopeScaling(
            kind="llama3", factor=32.0, original_context=8192, low_freq_factor=1.0, high_freq_factor=4.0
        ),
        131072,
        rope_type="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    compare(
        128,
        1e6,
        RopeScaling(kind="yarn", factor=4.0, original_context=32768),
        32768,
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=32768,
    )
