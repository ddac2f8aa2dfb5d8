"""The reference sampler against known vectors and against each rule on its own."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from outpace.backends.reference_sampler import gumbel, likeliest, log_softmax, sample
from outpace.engine.sampling import choice_seed, pack
from outpace.types import SamplingParams

MASK = (1 << 64) - 1


def record(num_prompt_tokens: int = 0, **params: object) -> np.void:
    return pack(SamplingParams(**params), 0, num_prompt_tokens).record[0]


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def scalar_gumbel(seed: int, position: int, token_id: int) -> float:
    """The recipe of engine/sampling.py with Python's own integers."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    z = mix((seed + 0x9E3779B97F4A7C15 * (position + 1)) & MASK)
    y = mix((z + 0xD1B54A32D192ED03 * (token_id + 1)) & MASK)
    u = ((y >> 40) + 0.5) * 2.0**-24
    return -math.log(-math.log(u))


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_gumbel_is_the_stated_hash(seed: int) -> None:
    ids = np.array([0, 1, 49151, 151935])
    for position in (0, 1, 100_000):
        expected = [scalar_gumbel(seed, position, int(token)) for token in ids]
        np.testing.assert_allclose(gumbel(seed, position, ids), expected, rtol=1e-6)


def test_gumbel_noise_samples_the_softmax() -> None:
    """Chi-squared over many positions: below the 99.99 % point of 4 degrees of freedom."""
    logits = f32(0, 1, 2, -1, 0.5)
    count = 4000
    params = record(temperature=0.8, seed=12345)
    got = Counter(sample(logits, params, position) for position in range(count))
    weights = np.exp(logits / 0.8)
    expected = weights / weights.sum() * count
    chi2 = sum((got[i] - expected[i]) ** 2 / expected[i] for i in range(5))
    assert chi2 < 23.5


@pytest.mark.parametrize("temperature", [9.9e-6, 1e-40, 5e-324])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature: float) -> None:
    params = record(temperature=temperature, seed=3)
    assert params["temperature"] == 0
    assert sample(f32(1e4, 1e4 + 1, 3), params, 5) == 1


def test_the_smallest_temperature_stays_finite() -> None:
    with np.errstate(all="raise", under="ignore"):
        assert sample(f32(-3e4, 3e4, 3), record(temperature=1e-5, seed=3), 5) == 1


@pytest.mark.parametrize("limits", [{"top_p": 5e-324}, {"min_p": 5e-324, "top_k": 1}])
def test_limits_that_float32_rounds_to_zero_still_keep_the_likeliest(limits: dict[str, float]) -> None:
    with np.errstate(all="raise", under="ignore"):
        assert sample(f32(1, 9, 3), record(temperature=1e-3, seed=3, **limits), 5) == 1


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert sample(f32(1, 3, 3, 2), record(temperature=0), 0) == 1


def test_likeliest_orders_ties_by_id() -> None:
    logits = f32(1, 5, 5, 0, 5, 2)
    for k, expected in ((0, []), (2, [1, 2]), (3, [1, 2, 4]), (4, [1, 2, 4, 5]), (9, [1, 2, 4, 5, 0, 3])):
        assert likeliest(logits, k).tolist() == expected


def reachable(logits: np.ndarray, **params: object) -> set[int]:
    return {sample(logits, record(seed=1, **params), position) for position in range(400)}


def test_top_k_keeps_the_lowest_ids_of_equals() -> None:
    assert reachable(f32(1, 2, 2, 2), temperature=1.0, top_k=2) == {1, 2}


def test_top_p_keeps_what_reaches_it() -> None:
    logits = np.log(f32(0.1, 0.4, 0.2, 0.3))
    assert reachable(logits, temperature=1.0, top_p=0.35) == {1}
    assert reachable(logits, temperature=1.0, top_p=0.41) == {1, 3}
    assert reachable(logits, temperature=1.0, top_p=0.75) == {1, 2, 3}
    assert reachable(logits, temperature=1.0, top_p=0.95) == {0, 1, 2, 3}


def test_top_p_is_over_what_top_k_kept() -> None:
    logits = np.log(f32(0.1, 0.4, 0.2, 0.3))
    assert reachable(logits, temperature=1.0, top_k=2, top_p=0.5) == {1}  # 0.4 / 0.7 = 0.57


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = np.log(f32(0.1, 0.4, 0.2, 0.3))
    assert reachable(logits, temperature=1.0, min_p=0.6) == {1, 3}
    assert reachable(logits, temperature=1.0, min_p=1.0) == {1}


def test_repetition_penalty_over_prompt_and_output() -> None:
    logits = f32(2.0, 1.5, -1.0, -1.2)
    params = record(1, temperature=0, repetition_penalty=2.0)
    assert sample(logits, params, 2, np.array([0, 0], np.int32)) == 1  # 2.0 / 2 < 1.5, and only once
    assert sample(f32(-1.0, -1.5), params, 1, np.array([0], np.int32)) == 1  # -1.0 * 2 < -1.5


def test_presence_and_frequency_penalties_over_the_output_only() -> None:
    logits = f32(2.0, 1.5, 0.0)
    history = np.array([0, 0, 1], np.int32)
    presence = {"temperature": 0, "presence_penalty": 1.0}
    assert sample(logits, record(3, **presence), 3, history) == 0  # all of it is prompt
    assert sample(logits, record(2, **presence), 3, history) == 0  # output: 1
    assert sample(logits, record(1, **presence), 3, history) == 0  # both: 1.0 > 0.5
    frequency = {"temperature": 0, "frequency_penalty": 0.6}
    assert sample(logits, record(0, **frequency), 3, history) == 1  # 2.0 - 1.2 < 1.5 - 0.6
    assert sample(logits, record(1, **frequency), 3, history) == 0  # 1.4 > 0.9


def test_bias_comes_before_the_penalties() -> None:
    bias = (np.array([1], np.int32), f32(1.0))
    params = record(temperature=0, repetition_penalty=2.0)
    # 1.0 + 1.0 = 2.0, halved to 1.0; were it halved first, 0.5 + 1.0 would win.
    assert sample(f32(1.2, 1.0), params, 1, np.array([1], np.int32), bias) == 0


def test_log_softmax_sums_to_one() -> None:
    logits = np.random.default_rng(0).normal(0, 5, 1000).astype(np.float32)
    values = log_softmax(logits, np.arange(1000))
    assert math.isclose(np.exp(values.astype(np.float64)).sum(), 1, rel_tol=1e-5)
    assert values.dtype == np.float32


def test_choice_seeds_differ() -> None:
    assert choice_seed(7, 0) == 7
    assert choice_seed(-1, 0) == 2**64 - 1
    assert len({choice_seed(7, index) for index in range(128)}) == 128
