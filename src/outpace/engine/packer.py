"""Packs a step's plan into the flat arrays that a backend reads.

The arrays are made once and reused: a `StepBatch` is valid until the next one is packed. A block-table row
is rewritten only where it changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from outpace.engine.request import Request
from outpace.engine.scheduler import StepPlan
from outpace.types import SAMPLING_DTYPE, Draft, Float32Array, Int32Array, StepBatch, UInt32Array

__all__ = ["BatchPacker"]


class BatchPacker:
    """Owns the arrays for `max_requests` requests, `max_rows` rows and `max_blocks` blocks a request."""

    def __init__(self, max_requests: int, max_rows: int, max_blocks: int) -> None:
        self._token_ids = np.zeros(max_rows, np.int32)
        self._row_start = np.zeros(max_requests + 1, np.int32)
        self._num_computed = np.zeros(max_requests, np.int32)
        self._num_draft = np.zeros(max_requests, np.int32)
        self._draft_parents = np.zeros(max_rows, np.int32)
        self._sample = np.zeros(max_requests, np.uint8)
        self._block_tables = np.full((max_requests, max_blocks), -1, np.int32)
        self._sampling = np.zeros(max_requests, SAMPLING_DTYPE)
        # Whose entries each row of _block_tables and _sampling has: (request, block_version, blocks written).
        self._owners: list[tuple[Request, int, int] | None] = [None] * max_requests

    def pack(
        self,
        plan: StepPlan,
        drafts: Sequence[Draft],
        token_masks: list[UInt32Array | None] | None = None,
    ) -> StepBatch:
        """The plan's rows, each request's new tokens and then its draft."""
        token_ids = self._token_ids
        starts = [0]
        computed: list[int] = []
        row = 0
        needs_history = needs_bias = branches = needs_hidden = False
        for i, request in enumerate(plan.requests):
            first, new, draft = request.num_computed_tokens, plan.num_new[i], drafts[i].token_ids
            if new == 1 and plan.sample[i]:
                token_ids[row] = request.last_token_id
            else:
                token_ids[row : row + new] = request.token_ids[first : first + new]
            row += new
            if draft:
                token_ids[row : row + len(draft)] = draft
                row += len(draft)
                branches |= drafts[i].parents is not None
            starts.append(row)
            computed.append(first)
            self._write_row(i, request)
            needs_history |= request.sampling.needs_history
            needs_bias |= request.sampling.logit_bias is not None
            needs_hidden |= request.pooled is not None
        n = len(computed)
        self._row_start[: n + 1] = starts
        self._num_computed[:n] = computed
        self._num_draft[:n] = [len(draft.token_ids) for draft in drafts]
        self._sample[:n] = plan.sample
        return StepBatch(
            token_ids=token_ids[:row],
            row_start=self._row_start[: n + 1],
            num_computed_tokens=self._num_computed[:n],
            num_draft_tokens=self._num_draft[:n],
            sample=self._sample[:n],
            block_tables=self._block_tables[:n],
            sampling=self._sampling[:n],
            history=_histories(plan) if needs_history else None,
            logit_bias=_biases(plan) if needs_bias else None,
            token_masks=token_masks,
            draft_parents=self._parents(starts, drafts) if branches else None,
            want_hidden=needs_hidden,
        )

    def _parents(self, starts: Sequence[int], drafts: Sequence[Draft]) -> Int32Array:
        """Every draft row's parent; -1 in the other rows."""
        parents = self._draft_parents[: starts[-1]]
        parents.fill(-1)
        for end, draft in zip(starts[1:], drafts, strict=True):
            count = len(draft.token_ids)
            chain = range(-1, count - 1)
            parents[end - count : end] = chain if draft.parents is None else draft.parents
        return parents

    def _write_row(self, index: int, request: Request) -> None:
        """Bring row `index` of the block tables and of the sampling records up to the request."""
        owner = self._owners[index]
        num_blocks = len(request.block_ids)
        written = 0
        if owner is not None and owner[0] is request and owner[1] == request.block_version:
            written = owner[2]
            if written == num_blocks:
                return
        else:
            self._block_tables[index].fill(-1)
            self._sampling[index : index + 1] = request.sampling.record
        self._block_tables[index, written:num_blocks] = request.block_ids[written:]
        self._owners[index] = (request, request.block_version, num_blocks)


def _histories(plan: StepPlan) -> list[Int32Array | None]:
    """Prompt and output before the drafts, where a penalty reads them."""
    return [request.token_ids if request.sampling.needs_history else None for request in plan.requests]


def _biases(plan: StepPlan) -> list[tuple[Int32Array, Float32Array] | None]:
    return [request.sampling.logit_bias for request in plan.requests]
