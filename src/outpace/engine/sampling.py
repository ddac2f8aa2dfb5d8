"""What sampling means, its limits, and the record that the backends read.

Every backend picks a token from a row's raw logits (float32 [vocab_size]) as follows; the reference is
`outpace.backends.reference_sampler`. All arithmetic is float32, one rounding per operation (no fused
multiply-add), unless float64 is named. Ties are won by the lowest token id everywhere.

1. Where a grammar leaves no place for a token: `l = -inf`.
2. logit_bias: `l[id] += bias`.
3. Repetition penalty r, for each id that occurs in prompt or output: `l / r` where l > 0, else `l * r`.
4. Frequency penalty, for each id by its count in the output: `l -= frequency * count`; then the presence
   penalty, for each id in the output: `l -= presence`. The output includes the accepted draft tokens
   before this position.
5. Temperature below 1e-5 (greedy; packed as 0): the answer is argmax l. The steps below do not run.
6. `s = l / temperature`.
7. top_k > 0: keep the top_k largest s.
8. top_p < 1: weights `w = exp(s - max s)` of what is kept, ordered by decreasing s; keep a token where the
   sum of the weights before it is below `top_p * (sum of all)`. The first token is always kept.
9. min_p > 0: keep where `exp(s - max s) >= min_p`.
   (Sums are float64. A backend's exp may differ from another's in the last bits of float32, so two backends
   may disagree on a token within 1e-6 of the limit; one backend never disagrees with itself.)
10. The answer is the argmax over what is kept of `s + g(seed, position, id)`. `position` is the number of
   tokens before the one being chosen, prompt included.

g is Gumbel noise from a counter-based hash; integers are unsigned 64 bit and wrap:

    mix(z): z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB; z ^= z >> 31
    z = mix(seed + 0x9E3779B97F4A7C15 * (position + 1))
    y = mix(z + 0xD1B54A32D192ED03 * (id + 1))
    u = ((y >> 40) + 0.5) * 2**-24
    g = float32(-log(-log(u)))        with u and both logarithms in float64

Log probabilities are those of the *raw* logits: `float32(l - max - log(sum exp(l - max)))` in float64, of the
chosen token and of the `num_logprobs` largest.

So the token is a function of prefix, parameters and seed alone, and a draft token is accepted exactly when
it equals the answer at its position.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import SupportsIndex

import numpy as np

from outpace.errors import InvalidParameterError
from outpace.types import SAMPLING_DTYPE, Float32Array, Int32Array, SamplingParams

__all__ = [
    "MAX_CHOICES",
    "MAX_LOGPROBS",
    "MAX_STOPS",
    "MIN_TEMPERATURE",
    "PackedSampling",
    "choice_seed",
    "pack",
    "validate",
    "with_seed",
]

MAX_CHOICES = 128
MAX_LOGPROBS = 64
MAX_STOPS = 64
MIN_TEMPERATURE = 1e-5  # below it, as in vLLM, is greedy: `l / temperature` must stay finite in float32
_MASK = (1 << 64) - 1


def _check(ok: bool, field: str, value: object, limits: str) -> None:
    if not ok:
        raise InvalidParameterError(f"{field} must be {limits}, not {value!r}", field)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object, low: int, high: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):  # numpy's integers are welcome
        return False
    return low <= operator.index(value) <= high


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _check_number(params: SamplingParams, field: str, inside: Callable[[float], bool], limits: str) -> None:
    value = getattr(params, field)
    _check(_is_number(value) and inside(value), field, value, limits)


def _check_integer(params: SamplingParams, field: str, low: int, high: int) -> None:
    value = getattr(params, field)
    _check(_is_integer(value, low, high), field, value, f"a whole number from {low} to {high}")


def validate(params: SamplingParams, vocab_size: int) -> None:
    """Raise `InvalidParameterError`, with the field and its limits, where a parameter is out of them."""
    _check_number(params, "temperature", lambda x: 0 <= x <= 100, "a number from 0 to 100")
    _check_number(params, "top_p", lambda x: 0 < x <= 1, "a number above 0, at most 1")
    _check_number(params, "min_p", lambda x: 0 <= x <= 1, "a number from 0 to 1")
    _check_number(params, "repetition_penalty", lambda x: 0.01 <= x <= 100, "a number from 0.01 to 100")
    _check_number(params, "presence_penalty", lambda x: abs(x) <= 100, "a number from -100 to 100")
    _check_number(params, "frequency_penalty", lambda x: abs(x) <= 100, "a number from -100 to 100")
    _check_integer(params, "top_k", 0, 2**31 - 1)
    _check_integer(params, "n", 1, MAX_CHOICES)
    if params.max_tokens is not None:
        _check_integer(params, "max_tokens", 1, 2**31 - 1)
    if params.seed is not None:
        _check_integer(params, "seed", -(1 << 63), _MASK)
    if params.logprobs is not None:
        _check_integer(params, "logprobs", 0, min(MAX_LOGPROBS, vocab_size))
    _validate_stops(params, vocab_size)
    for token_id, bias in params.logit_bias.items():
        _check(
            _is_integer(token_id, 0, vocab_size - 1),
            "logit_bias",
            token_id,
            f"for token ids below {vocab_size}",
        )
        _check(_is_number(bias) and abs(bias) <= 100, "logit_bias", bias, "numbers from -100 to 100")


def _validate_stops(params: SamplingParams, vocab_size: int) -> None:
    _check(not isinstance(params.stop, str), "stop", params.stop, "a sequence of strings")
    for text in params.stop:
        _check(_is_text(text), "stop", text, "strings that are not empty")
    for field in ("stop", "stop_token_ids", "shown_token_ids"):
        count = len(getattr(params, field))
        _check(count <= MAX_STOPS, field, count, f"at most {MAX_STOPS} entries")
    for field in ("stop_token_ids", "shown_token_ids"):
        for token_id in getattr(params, field):
            _check(_is_integer(token_id, 0, vocab_size - 1), field, token_id, f"token ids below {vocab_size}")


def choice_seed(seed: int, index: int) -> int:
    """The seed of a request's choice `index`: the request's own for 0, a mix of both for the others."""
    seed &= _MASK
    if index == 0:
        return seed
    z = (seed + 0x9E3779B97F4A7C15 * index) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def with_seed(params: SamplingParams) -> SamplingParams:
    """The same parameters with a seed in 0 .. 2**64 - 1: the given one, or one drawn now (53 bits, so that it
    survives JSON).
    """
    seed = int.from_bytes(os.urandom(8)) >> 11 if params.seed is None else int(params.seed) & _MASK
    return params if seed == params.seed else replace(params, seed=seed)


@dataclass(frozen=True, slots=True)
class PackedSampling:
    """One choice's parameters as a step needs them; made once, at submit."""

    record: np.ndarray[tuple[int], np.dtype[np.void]]  # [1] of SAMPLING_DTYPE
    logit_bias: tuple[Int32Array, Float32Array] | None  # (token ids ascending, biases)
    needs_history: bool  # a penalty is set
    num_logprobs: int  # -1: none


def pack(params: SamplingParams, index: int, num_prompt_tokens: int) -> PackedSampling:
    """Pack validated parameters with a seed for choice `index`."""
    record = np.zeros(1, SAMPLING_DTYPE)
    record["seed"] = choice_seed(params.seed or 0, index)
    for field in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"):
        record[field] = getattr(params, field)
    if params.temperature < MIN_TEMPERATURE:
        record["temperature"] = 0
    record["frequency_penalty"] = params.frequency_penalty
    record["top_k"] = params.top_k
    num_logprobs = -1 if params.logprobs is None else params.logprobs
    record["num_logprobs"] = num_logprobs
    record["num_prompt_tokens"] = num_prompt_tokens
    needs_history = (
        params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
    )
    return PackedSampling(record, _pack_bias(params), needs_history, num_logprobs)


def _pack_bias(params: SamplingParams) -> tuple[Int32Array, Float32Array] | None:
    if not params.logit_bias:
        return None
    ids: Sequence[int] = sorted(params.logit_bias)
    biases = [params.logit_bias[token_id] for token_id in ids]
    return np.array(ids, np.int32), np.array(biases, np.float32)
