"""A backend without weights: it tests the engine, and prices what Python costs.

The next token is a pure function of the token ids that it *finds in its own paged KV cache* and of the
sampling parameters. So a wrong block table, a block shared by mistake or a slot never written changes the
answer, as it would with a real model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from outpace.backends.reference_sampler import Sampled, draft_parents, mix, next_draft, verify
from outpace.config import kv_bytes_per_block
from outpace.errors import BackendError
from outpace.types import (
    BLOCK_SIZE,
    EngineConfig,
    Float32Array,
    Int32Array,
    ModelSpec,
    StepBatch,
    StepOutput,
)

if TYPE_CHECKING:
    from outpace.models.checkpoint import Checkpoint

__all__ = ["NullBackend"]


class NullBackend:
    """Pseudo-logits from a hash of the prefix; implements `outpace.types.Backend`."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        per_block = kv_bytes_per_block(checkpoint.spec, config.kv_format)
        self._set_up(checkpoint.spec, config.kv_cache_bytes // per_block)

    @classmethod
    def from_spec(cls, spec: ModelSpec, num_blocks: int) -> NullBackend:
        """Without a checkpoint: only `vocab_size` and `max_context` of the spec matter."""
        backend = cls.__new__(cls)
        backend._set_up(spec, num_blocks)
        return backend

    def _set_up(self, spec: ModelSpec, num_blocks: int) -> None:
        self._spec = spec
        # Token ids in place of keys and values, -1 where nothing was written.
        self._kv = np.full((num_blocks, BLOCK_SIZE), -1, np.int32)
        self._slots = self._kv.reshape(-1)
        positions = np.arange(num_blocks * BLOCK_SIZE + BLOCK_SIZE, dtype=np.uint64)
        self._multipliers = mix(positions + np.uint64(1)) | np.uint64(1)  # one odd number for each position
        self._vocab = mix(np.arange(spec.vocab_size, dtype=np.uint64))

    @property
    def spec(self) -> ModelSpec:
        """The model whose vocabulary and context it mimics."""
        return self._spec

    @property
    def num_blocks(self) -> int:
        """Blocks in its pretended KV cache."""
        return len(self._kv)

    @property
    def kv_blocks(self) -> NDArray[np.uint8]:
        """The token ids in place of keys and values, as bytes, [num_blocks, bytes of a block]."""
        return self._kv.view(np.uint8)

    @property
    def state_blocks(self) -> None:
        """Nothing else is kept."""

    @property
    def weight_bytes(self) -> int:
        """None are read."""
        return 0

    @property
    def description(self) -> Mapping[str, str | int]:
        """What a report needs."""
        return {"backend": "null", "isa": "none", "threads": 1, "kv_format": "token ids"}

    def close(self) -> None:
        """Nothing to give back."""

    def step(self, batch: StepBatch) -> StepOutput:
        """Store the rows' token ids in their slots; choose from what the cache then holds."""
        starts: list[int] = batch.row_start.tolist()
        computed: list[int] = batch.num_computed_tokens.tolist()
        drafts: list[int] = batch.num_draft_tokens.tolist()
        for i, first in enumerate(computed):
            self._store(batch, i, first, starts[i], starts[i + 1])
        sampled = Sampled.empty(batch)
        wanted: list[Float32Array] = []
        hidden: list[Float32Array] = []
        plain = (batch.sampling["temperature"] == 0) & (batch.sampling["num_logprobs"] < 0)
        adjusted = batch.history or batch.logit_bias or batch.token_masks
        quick: list[bool] = [False] * len(plain) if adjusted else plain.tolist()
        for i, first in enumerate(computed):
            num_rows = starts[i + 1] - starts[i]
            if batch.want_logits:
                wanted += self._logits(self._prefix_hashes(batch, i, first, num_rows, num_rows))
            if batch.want_hidden:
                hidden.append(self._hidden(self._prefix_hashes(batch, i, first, num_rows, num_rows)))
            if not batch.sample[i]:
                continue
            hashes = self._prefix_hashes(batch, i, first, num_rows, drafts[i] + 1)
            if quick[i]:
                path = self._verify_greedy(sampled, i, hashes, starts[i + 1], drafts[i])
            else:
                path = verify(sampled, i, np.stack(self._logits(hashes)))
            if batch.draft_parents is not None:
                self._move_accepted(batch, i, first + num_rows - drafts[i], path)
        output = sampled.output(np.stack(wanted) if batch.want_logits else None)
        if batch.want_hidden:
            output.hidden = np.concatenate(hidden)
        return output

    def _store(self, batch: StepBatch, request: int, first: int, start: int, end: int) -> None:
        if end - start == 1:
            block = batch.block_tables[request, first // BLOCK_SIZE]
            if block < 0:
                raise BackendError(f"request {request}: position {first} has no block")
            self._kv[block, first % BLOCK_SIZE] = batch.token_ids[start]
            return
        positions = np.arange(first, first + end - start)
        blocks = batch.block_tables[request, positions // BLOCK_SIZE]
        if blocks.min() < 0:
            raise BackendError(f"request {request}: positions up to {positions[-1]} have no block")
        self._kv[blocks, positions % BLOCK_SIZE] = batch.token_ids[start:end]

    def _prefix_hashes(
        self, batch: StepBatch, request: int, first: int, num_rows: int, num_last: int
    ) -> NDArray[np.uint64]:
        """Hashes of the prefixes, each along its path, that end with the request's last `num_last` rows."""
        length = first + num_rows
        blocks: Int32Array = batch.block_tables[request, : -(-length // BLOCK_SIZE)]
        tokens = self._kv[blocks].reshape(-1)[:length]
        terms = tokens.astype(np.uint64)
        terms += np.uint64(2)  # what was never written counts too, as 1
        terms *= self._multipliers[:length]
        split = length - num_last + 1
        sums = np.cumsum(terms[split - 1 :])
        sums += terms[: split - 1].sum()
        num_drafts = int(batch.num_draft_tokens[request])
        if batch.draft_parents is not None and num_drafts:
            self._extend_paths(sums[-num_drafts - 1 :], tokens, draft_parents(batch, request))
        return mix(sums)

    def _extend_paths(self, sums: NDArray[np.uint64], tokens: Int32Array, parents: list[int]) -> None:
        """Set `sums` [1 + drafts] of the drafts, the last of `tokens`, to those of their paths."""
        root = len(tokens) - len(sums)  # position of the row before the drafts
        depths = [0]
        for i, parent in enumerate(parents):
            depths.append(depths[parent + 1] + 1)
            position = root + depths[-1]
            term = (int(tokens[root + 1 + i]) + 2) * int(self._multipliers[position])
            sums[i + 1] = (int(sums[parent + 1]) + term) % 2**64

    def _move_accepted(self, batch: StepBatch, request: int, first: int, path: list[int]) -> None:
        """Bring the accepted drafts' entries from their rows' slots to those from position `first` on."""
        for depth, draft in enumerate(path):  # a draft's slot is never before the one it belongs in
            source, target = first + draft, first + depth
            table = batch.block_tables[request]
            self._kv[table[target // BLOCK_SIZE], target % BLOCK_SIZE] = self._kv[
                table[source // BLOCK_SIZE], source % BLOCK_SIZE
            ]

    def _verify_greedy(
        self, sampled: Sampled, request: int, hashes: NDArray[np.uint64], end: int, num_drafts: int
    ) -> list[int]:
        """As `verify`, where the choice is `_logits`' argmax."""
        chosen: list[int] = (hashes % np.uint64(self._spec.vocab_size)).tolist()
        path: list[int] = []
        if num_drafts:
            drafts: list[int] = sampled.batch.token_ids[end - num_drafts : end].tolist()
            parents = draft_parents(sampled.batch, request)
            draft = next_draft(drafts, parents, -1, chosen[0])
            while draft is not None:
                path.append(draft)
                draft = next_draft(drafts, parents, draft, chosen[draft + 1])
        sampled.token_ids[request, : len(path) + 1] = [chosen[draft + 1] for draft in (-1, *path)]
        sampled.num_accepted[request] = len(path)
        return path

    def _hidden(self, hashes: NDArray[np.uint64]) -> Float32Array:
        """Pseudo-states in [-1, 1) for each prefix, [prefixes, hidden_size]."""
        salt = mix(np.arange(self._spec.hidden_size, dtype=np.uint64))
        return (mix(hashes[:, np.newaxis] ^ salt) >> np.uint64(40)).astype(np.float32) * np.float32(
            2.0**-23
        ) - 1

    def _logits(self, hashes: NDArray[np.uint64]) -> list[Float32Array]:
        """Pseudo-logits in [0, 4) for each prefix; the argmax, with 4.5, is token `hash % vocab_size`."""
        rows: list[Float32Array] = []
        for prefix in hashes:
            logits = (mix(self._vocab ^ prefix) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-22)
            logits[int(prefix) % self._spec.vocab_size] = 4.5
            rows.append(logits)
        return rows
