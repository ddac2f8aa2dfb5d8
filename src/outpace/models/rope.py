"""Rotary position embeddings: inverse frequencies with scaling applied, as transformers computes them.

All arithmetic is float32 in transformers' order of operations (`modeling_rope_utils.py`), so that the
angles are the ones that a model was trained and evaluated with. The power itself is rounded from
float64; transformers' float32 power may differ from it in the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from outpace.types import Float32Array

RopeScalingKind = Literal["none", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How a rope is stretched beyond the context that the model was first trained on."""

    kind: RopeScalingKind = "none"
    factor: float = 1.0
    original_context: int = 0  # tokens; llama3 and yarn
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn, rotations over the original context
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: round the ramp's ends to whole dimensions
    attention_factor: float | None = None  # yarn; None: 0.1 ln(factor) + 1
    mscale: float = 0.0  # yarn; with mscale_all_dim another attention factor; 0: absent
    mscale_all_dim: float = 0.0


def inverse_frequencies(theta: float, rotary_dim: int, scaling: RopeScaling) -> tuple[Float32Array, float]:
    """Radians per token of each pair, [rotary_dim / 2], and the factor on cos and sin."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    wavelengths = np.power(np.float64(np.float32(theta)), exponents.astype(np.float64)).astype(np.float32)
    if scaling.kind == "yarn":
        return _yarn(wavelengths, theta, rotary_dim, scaling), yarn_attention_factor(scaling)
    frequencies = np.float32(1) / wavelengths
    if scaling.kind == "linear":
        frequencies = frequencies / np.float32(scaling.factor)
    elif scaling.kind == "llama3":
        frequencies = _llama3(frequencies, scaling)
    return frequencies, 1.0


def _llama3(frequencies: Float32Array, scaling: RopeScaling) -> Float32Array:
    """Long waves slowed by `factor`, short ones kept, those between interpolated (Llama 3.1)."""
    one, factor = np.float32(1), np.float32(scaling.factor)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wave = np.float32(2 * math.pi) / frequencies  # tokens for one turn
    scaled = np.where(wave > np.float32(scaling.original_context / low), frequencies / factor, frequencies)
    smooth = (np.float32(scaling.original_context) / wave - np.float32(low)) / np.float32(high - low)
    smoothed = (one - smooth) * scaled / factor + smooth * scaled
    between = ~(wave < np.float32(scaling.original_context / high)) & ~(
        wave > np.float32(scaling.original_context / low)
    )
    return np.where(between, smoothed, scaled).astype(np.float32)


def _yarn(wavelengths: Float32Array, theta: float, rotary_dim: int, scaling: RopeScaling) -> Float32Array:
    """YaRN, https://arxiv.org/abs/2309.00071: a ramp between interpolation and extrapolation."""

    def dimension_of(rotations: float) -> float:
        turns = scaling.original_context / (rotations * 2 * math.pi)
        return rotary_dim * math.log(turns) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001
    one = np.float32(1)
    steps = np.arange(rotary_dim // 2, dtype=np.float32)
    ramp = np.clip((steps - np.float32(low)) / np.float32(high - low), np.float32(0), one)
    extrapolated = one / wavelengths
    interpolated = one / (np.float32(scaling.factor) * wavelengths)
    keep = one - ramp
    return (interpolated * (one - keep) + extrapolated * keep).astype(np.float32)


def yarn_attention_factor(scaling: RopeScaling) -> float:
    """YaRN's factor on cos and sin."""

    def magnitude(multiplier: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * multiplier * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)
