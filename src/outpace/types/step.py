"""One step of the engine, and who runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from outpace.types.arrays import Float32Array, Int32Array, UInt32Array
from outpace.types.model import ModelSpec

BLOCK_SIZE = 32
"""Tokens in one block of the paged KV cache."""


@dataclass(slots=True)
class StepBatch:
    """One step's rows as flat arrays; a row is one token at one position of one request.

    The rows of request i are `row_start[i] : row_start[i + 1]`, consecutive positions from
    `num_computed_tokens[i]` on. The last `num_draft_tokens[i]` of them are drafts. Where `sample[i]`
    is set, the row before the drafts and every draft row yield a token; else the request is in the
    midst of its prompt and the rows only fill the KV cache.

    Where drafts branch, `draft_parents` holds for each draft row the index, among its request's drafts, of
    the draft before it (a lower one), or -1 for the row before the drafts; in other rows it means nothing.
    A draft's position is that of the row before the drafts plus its depth (1 for a child of -1), and it sees
    its own path alone: choice and logits are those of that path as a chain. All rows have slots.
    """

    token_ids: Int32Array  # [num_rows]
    row_start: Int32Array  # [num_requests + 1]
    num_computed_tokens: Int32Array  # [num_requests] tokens already in the KV cache
    num_draft_tokens: Int32Array  # [num_requests]
    sample: NDArray[np.uint8]  # [num_requests] 0 or 1
    block_tables: Int32Array  # [num_requests, width] block ids, -1 past the end
    sampling: NDArray[np.void]  # [num_requests] of SAMPLING_DTYPE
    # Only what some requests need; None where no request of the batch needs it.
    history: list[Int32Array | None] | None = None  # prompt and output ids, for the penalties
    logit_bias: list[tuple[Int32Array, Float32Array] | None] | None = None  # (token ids, biases)
    # For the row before the drafts and for each draft a row of bits, lowest first, of the tokens that may
    # follow: [1 + num_draft_tokens[i] rows, flat: ceil(vocab_size / 32) words each]; None: all may.
    token_masks: list[UInt32Array | None] | None = None
    draft_parents: Int32Array | None = None  # [num_rows]; None: every draft is a chain
    # Only the first so many tokens of the vocabulary need be chosen among; 0: all. It spares the native
    # backend the others' rows of the output; their logits are -inf there.
    num_output_tokens: int = 0
    want_logits: bool = False  # return the logits of every row (oracle, perplexity)
    want_hidden: bool = False  # return the final hidden states of every row (embeddings)

    @property
    def num_rows(self) -> int:
        """Rows in the step."""
        return len(self.token_ids)

    @property
    def num_requests(self) -> int:
        """Requests in the step."""
        return len(self.num_computed_tokens)


@dataclass(slots=True)
class StepOutput:
    """What a step chose.

    Request i gets `token_ids[i, : num_accepted[i] + 1]`: the drafts that equal what plain decoding
    picks, then the bonus token. A request whose `sample` is 0 gets nothing. In a tree they are a path: from
    the row before the drafts on, the first child that equals the token picked. The KV cache then holds that
    path as if it had been a chain.
    """

    token_ids: Int32Array  # [num_requests, 1 + max draft]
    num_accepted: Int32Array  # [num_requests] draft tokens accepted
    logprobs: Float32Array | None = None  # [num_requests, 1 + max draft] nats, of the raw logits
    top_token_ids: Int32Array | None = None  # [num_requests, 1 + max draft, k] likeliest first
    top_logprobs: Float32Array | None = None  # [num_requests, 1 + max draft, k]
    logits: Float32Array | None = None  # [num_rows, vocab_size], when the batch asks
    hidden: Float32Array | None = None  # [num_rows, hidden_size], after the output norm, when it asks


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one engine step did and took; the raw material of the metrics."""

    num_rows: int
    num_requests: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_new_tokens: int
    step_seconds: float  # all of Engine.step
    backend_seconds: float  # of that, inside Backend.step
    draft_seconds: float = 0.0  # of that, proposing and learning from what was accepted


class Backend(Protocol):
    """Runs the forward pass and picks tokens. One call per step; not reentrant."""

    @property
    def spec(self) -> ModelSpec:
        """The model that it runs."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of BLOCK_SIZE tokens in the KV cache that it holds."""
        ...

    @property
    def kv_blocks(self) -> NDArray[np.uint8] | None:
        """The KV cache's own memory, [num_blocks or more, bytes of a block]; None where it has no such form.

        A full block, copied to any other place in it, means the same there. Valid until `close`.
        """
        ...

    @property
    def state_blocks(self) -> NDArray[np.uint8] | None:
        """What is kept beside these blocks for a draft head, [num_blocks or more, bytes]; None: nothing.

        Whoever copies a block into the KV cache sets these bytes to zeros: they are of what was there before.
        """
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        ...

    @property
    def description(self) -> Mapping[str, str | int]:
        """What a report needs: isa, threads, kv format and the like."""
        ...

    def step(self, batch: StepBatch) -> StepOutput:
        """Run one step. Raises `BackendError`; the KV cache then holds garbage in the batch's new slots."""
        ...

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        ...
