"""Sampling in numpy, by the letter of `outpace.engine.sampling`: the null and the torch backend use it.

The native core mirrors it in C++; `tests/unit/backends` holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.types import Float32Array, Int32Array, StepBatch, StepOutput, UInt32Array

__all__ = ["Sampled", "draft_parents", "gumbel", "likeliest", "log_softmax", "next_draft", "sample", "verify"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TOKEN_STEP = np.uint64(0xD1B54A32D192ED03)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
UInt64Array = NDArray[np.uint64]
Bias = tuple[Int32Array, Float32Array]


def mix(z: UInt64Array) -> UInt64Array:
    """splitmix64's finalizer, element by element."""
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


def gumbel(seed: int, position: int, token_ids: NDArray[np.integer]) -> Float32Array:
    """Gumbel noise for each token id, a pure function of (seed, position, token id)."""
    z = mix(np.array([seed], np.uint64) + _GOLDEN * np.array([position + 1], np.uint64))
    y = mix(z + _TOKEN_STEP * (token_ids.astype(np.uint64) + np.uint64(1)))
    u = ((y >> np.uint64(40)).astype(np.float64) + 0.5) * 2.0**-24
    return (-np.log(-np.log(u))).astype(np.float32)


def likeliest(logits: Float32Array, k: int) -> NDArray[np.intp]:
    """The ids of the k largest logits, largest first, the lowest id first among equals."""
    if k <= 0:
        return np.empty(0, np.intp)
    if k < len(logits):
        threshold = np.partition(logits, len(logits) - k)[len(logits) - k]
        candidates = np.flatnonzero(logits >= threshold)
    else:
        candidates = np.arange(len(logits))
    return candidates[np.argsort(-logits[candidates], kind="stable")][:k]


def log_softmax(logits: Float32Array, token_ids: NDArray[np.integer]) -> Float32Array:
    """The log probabilities of some ids under the raw logits, in nats."""
    wide = logits.astype(np.float64)
    top = wide.max()
    return (wide[token_ids] - top - np.log(np.exp(wide - top).sum())).astype(np.float32)


def _adjust(
    logits: Float32Array,
    params: np.void,
    history: Int32Array | None,
    bias: Bias | None,
    mask: UInt32Array | None,
) -> Float32Array:
    """Steps 1 to 4: mask, bias and penalties, on a copy where there are any."""
    if bias is None and history is None and mask is None:
        return logits
    logits = logits.copy()
    if mask is not None:
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(logits)]
        logits[allowed == 0] = -np.inf
    if bias is not None:
        logits[bias[0]] += bias[1]
    if history is None:
        return logits
    repetition = np.float32(params["repetition_penalty"])
    if repetition != 1:
        seen = np.unique(history)
        old = logits[seen]
        logits[seen] = np.where(old > 0, old / repetition, old * repetition)
    output, counts = np.unique(history[int(params["num_prompt_tokens"]) :], return_counts=True)
    logits[output] -= np.float32(params["frequency_penalty"]) * counts.astype(np.float32)
    logits[output] -= np.float32(params["presence_penalty"])
    return logits


def _kept(scaled: Float32Array, params: np.void) -> NDArray[np.intp]:
    """Steps 7 to 9: the ids that top_k, top_p and min_p keep."""
    vocab_size = len(scaled)
    top_k, top_p, min_p = int(params["top_k"]), float(params["top_p"]), float(params["min_p"])
    cut = 0 < top_k < vocab_size
    if not cut and top_p >= 1 and min_p <= 0:
        return np.arange(vocab_size)
    kept = likeliest(scaled, top_k if cut else vocab_size)
    wide = scaled[kept].astype(np.float64)
    weights = np.exp(wide - wide[0])
    if top_p < 1:
        sums = np.cumsum(weights)
        count = 1 + int(np.count_nonzero(sums[:-1] < top_p * sums[-1]))
        kept, weights = kept[:count], weights[:count]
    return np.sort(kept[weights >= min_p] if min_p > 0 else kept)


def sample(
    logits: Float32Array,
    params: np.void,
    position: int,
    history: Int32Array | None = None,
    bias: Bias | None = None,
    mask: UInt32Array | None = None,
) -> int:
    """Pick the token at `position` from raw `logits` [vocab_size]; `params` is one SAMPLING_DTYPE record.

    `history` is the token ids before the position, prompt included; None where no penalty is set. `mask`
    has a bit for each token that may be picked, ceil(vocab_size / 32) words; None: all may.
    """
    adjusted = _adjust(logits, params, history, bias, mask)
    temperature = np.float32(params["temperature"])
    if temperature == 0:
        return int(np.argmax(adjusted))
    scaled = adjusted / temperature
    kept = _kept(scaled, params)
    return int(kept[np.argmax(scaled[kept] + gumbel(int(params["seed"]), position, kept))])


@dataclass(slots=True)
class Sampled:
    """Collects a step's choices and makes the `StepOutput` of them."""

    batch: StepBatch
    token_ids: Int32Array  # [num_requests, 1 + max draft]
    num_accepted: Int32Array  # [num_requests]
    logprobs: Float32Array | None  # [num_requests, 1 + max draft]
    top_token_ids: Int32Array | None  # [num_requests, 1 + max draft, k]
    top_logprobs: Float32Array | None

    @classmethod
    def empty(cls, batch: StepBatch) -> Sampled:
        """Room for the batch's choices; log probabilities only where some request asks."""
        shape = (batch.num_requests, 1 + int(batch.num_draft_tokens.max(initial=0)))
        k = int(batch.sampling["num_logprobs"].max(initial=-1))
        wanted = k >= 0
        return cls(
            batch,
            np.zeros(shape, np.int32),
            np.zeros(shape[0], np.int32),
            np.zeros(shape, np.float32) if wanted else None,
            np.zeros((*shape, k), np.int32) if wanted else None,
            np.zeros((*shape, k), np.float32) if wanted else None,
        )

    def store(self, request: int, index: int, token_id: int, logits: Float32Array | None) -> None:
        """Store a choice, and its log probabilities where `logits` are given and the request asks."""
        self.token_ids[request, index] = token_id
        k = int(self.batch.sampling["num_logprobs"][request])
        if logits is None or k < 0 or self.logprobs is None:
            return
        self.logprobs[request, index] = log_softmax(logits, np.array([token_id]))[0]
        if k > 0 and self.top_token_ids is not None and self.top_logprobs is not None:
            top = likeliest(logits, k)
            self.top_token_ids[request, index, :k] = top
            self.top_logprobs[request, index, :k] = log_softmax(logits, top)

    def output(self, logits: Float32Array | None = None) -> StepOutput:
        """The step's output."""
        return StepOutput(
            self.token_ids, self.num_accepted, self.logprobs, self.top_token_ids, self.top_logprobs, logits
        )


def draft_parents(batch: StepBatch, request: int) -> list[int]:
    """The parents of a request's drafts; those of a chain where the batch has none."""
    count = int(batch.num_draft_tokens[request])
    if batch.draft_parents is None:
        return list(range(-1, count - 1))
    end = int(batch.row_start[request + 1])
    return batch.draft_parents[end - count : end].tolist()


def next_draft(drafts: Sequence[int], parents: Sequence[int], last: int, token_id: int) -> int | None:
    """The draft that follows draft `last` (-1: the row before the drafts) with this token, if any."""
    for index in range(last + 1, len(drafts)):
        if parents[index] == last and drafts[index] == token_id:
            return index
    return None


def verify(sampled: Sampled, request: int, logits: Float32Array) -> list[int]:
    """Pick request i's tokens from its sampled rows' logits [1 + drafts, vocab_size], and accept its drafts.

    A draft is accepted where it equals the token that is picked at its position; where none does, that token
    is the bonus token. Returns the indices of the accepted drafts.
    """
    batch = sampled.batch
    num_drafts = int(batch.num_draft_tokens[request])
    end = int(batch.row_start[request + 1])
    drafts: list[int] = batch.token_ids[end - num_drafts : end].tolist()
    parents = draft_parents(batch, request)
    position = int(batch.num_computed_tokens[request]) + end - int(batch.row_start[request]) - num_drafts
    params = batch.sampling[request]
    history = None if batch.history is None else batch.history[request]
    bias = None if batch.logit_bias is None else batch.logit_bias[request]
    masks = None if batch.token_masks is None else batch.token_masks[request]
    if masks is not None:
        masks = masks.reshape(num_drafts + 1, -1)
    path: list[int] = []
    last: int | None = -1
    while last is not None:
        row = logits[last + 1]
        mask = None if masks is None else masks[last + 1]
        token_id = sample(row, params, position + len(path), history, bias, mask)
        sampled.store(request, len(path), token_id, row)
        last = next_draft(drafts, parents, last, token_id)
        if last is not None:
            path.append(last)
            if history is not None:
                history = np.append(history, np.int32(token_id))
    sampled.num_accepted[request] = len(path)
    return path
