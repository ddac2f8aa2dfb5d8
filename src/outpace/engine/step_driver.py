"""Drives an idle backend by hand: steps of so many rows, to see what they cost."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from outpace.engine.sampling import pack
from outpace.types import BLOCK_SIZE, Backend, Int32Array, SamplingParams, StepBatch

__all__ = ["CONTEXT", "StepDriver"]

CONTEXT = 256
"""Tokens in the KV cache before a timed step, unless told otherwise."""


class StepDriver:
    """Drives a backend with the rows of greedy requests, in the KV cache's first blocks.

    The backend must be idle: its engine may hold no running request meanwhile.
    """

    def __init__(self, backend: Backend, max_batch_tokens: int, num_output_tokens: int = 0) -> None:
        """`num_output_tokens`: as `StepBatch` has it."""
        self._backend = backend
        self._num_output_tokens = num_output_tokens
        self._max_batch_tokens = max_batch_tokens
        self._token_ids = _token_ids(self.capacity, backend.spec.vocab_size)
        self._sampling = pack(SamplingParams(temperature=0.0, seed=0), 0, 0).record  # all tokens generated
        self._prompt = pack(SamplingParams(temperature=0.0, seed=0), 0, self.capacity).record

    @property
    def capacity(self) -> int:
        """Tokens that one request may have here."""
        return min(self._backend.spec.max_context, self._backend.num_blocks * BLOCK_SIZE)

    def prefill(self, num_tokens: int) -> float:
        """Compute a prompt of `num_tokens` from nothing, in chunks of the batch limit; seconds."""
        started = perf_counter()
        for start in range(0, num_tokens, self._max_batch_tokens):
            end = min(start + self._max_batch_tokens, num_tokens)
            batch = self._batch(start, end, num_drafts=0, sample=end == num_tokens, sampling=self._prompt)
            self._backend.step(batch)
        return perf_counter() - started

    def step(self, num_rows: int, context: int = CONTEXT) -> float:
        """One step of `num_rows` rows after `context` tokens, all but the first as drafts; seconds.

        Every row is verified and picks a token. The KV cache must hold the context already.
        """
        end = context + num_rows
        batch = self._batch(context, end, num_drafts=num_rows - 1, sample=True, sampling=self._sampling)
        started = perf_counter()
        self._backend.step(batch)
        return perf_counter() - started

    def fits(self, num_requests: int, context: int) -> bool:
        """Whether so many requests of `context` tokens fit side by side."""
        return context <= self.capacity and num_requests * _blocks(context) <= self._backend.num_blocks

    def fill(self, num_requests: int, context: int) -> None:
        """Give so many requests blocks of their own for `context` tokens, and write a token into each block.

        What the keys and values are does not change a step's time, but memory that was never written is no
        memory yet. Computing them all would take minutes for a long context.
        """
        last = np.minimum(np.arange(1, _blocks(context) + 1) * BLOCK_SIZE, context).astype(np.int32) - 1
        requests = np.repeat(np.arange(num_requests, dtype=np.int32), len(last))
        positions = np.tile(last, num_requests)
        for start in range(0, len(positions), self._max_batch_tokens):
            part = slice(start, start + self._max_batch_tokens)
            self._backend.step(self._single_rows(requests[part], positions[part], context, sample=False))

    def decode(self, num_requests: int, context: int) -> float:
        """One step in which each of the requests picks its token from `context` tokens; seconds."""
        requests = np.arange(num_requests, dtype=np.int32)
        positions = np.full(num_requests, context - 1, np.int32)
        batch = self._single_rows(requests, positions, context, sample=True)
        started = perf_counter()
        self._backend.step(batch)
        return perf_counter() - started

    def _single_rows(
        self, requests: Int32Array, positions: Int32Array, context: int, *, sample: bool
    ) -> StepBatch:
        """A row for each position; request i has the i-th run of blocks for `context` tokens."""
        count, width = len(positions), _blocks(context)
        return StepBatch(
            token_ids=self._token_ids[positions],
            row_start=np.arange(count + 1, dtype=np.int32),
            num_computed_tokens=positions,
            num_draft_tokens=np.zeros(count, np.int32),
            sample=np.full(count, sample, np.uint8),
            block_tables=requests[:, np.newaxis] * width + np.arange(width, dtype=np.int32),
            num_output_tokens=self._num_output_tokens,
            sampling=np.repeat(self._sampling, count),
        )

    def _batch(
        self, start: int, end: int, *, num_drafts: int, sample: bool, sampling: NDArray[np.void]
    ) -> StepBatch:
        return StepBatch(
            token_ids=self._token_ids[start:end],
            row_start=np.array([0, end - start], np.int32),
            num_computed_tokens=np.array([start], np.int32),
            num_draft_tokens=np.array([num_drafts], np.int32),
            sample=np.array([sample], np.uint8),
            block_tables=np.arange(_blocks(end), dtype=np.int32)[np.newaxis],
            num_output_tokens=self._num_output_tokens,
            sampling=sampling,
        )


def _blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


def _token_ids(count: int, vocab_size: int) -> Int32Array:
    """The same arbitrary token ids every time."""
    return np.random.default_rng(0).integers(0, vocab_size, count, dtype=np.int32)
