"""Guesses at what comes next, and who makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from outpace.types.arrays import Float32Array, Int32Array


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that a drafter proposes to follow a request's last token.

    `parents[i]` is the index of the draft token before token i, below i, or -1 for the request's last token;
    None is a chain. Each path from -1 down is one guess at what follows; the likeliest goes first, as it
    alone costs no copies in the KV cache. A draft changes when a token comes, never which.
    """

    token_ids: Sequence[int]
    parents: Sequence[int] | None = None
    proposer: str = ""  # whose guess it is, for metrics and reports


Lane = Literal["priority", "default", "flex"]


@dataclass(frozen=True, slots=True)
class DraftHints:
    """What a caller may tell about a request that changes when its tokens come, never which."""

    # Whose shared drafts it may see and feed: one client's text never shows in another's. And whose cached
    # prefixes it finds, with `EngineConfig.prefix_sharing` "scope".
    scope: str = ""
    prediction: Sequence[int] = ()  # token ids that the output is expected to resemble
    drafts: bool = True  # False: plain decoding, and nothing of it is kept to draft from
    pin_seconds: float = 0.0  # how long its prompt's blocks leave memory after all others, from its end on
    lane: Lane = "default"  # how soon it begins where requests wait
    deadline: float = 0.0  # time.perf_counter() seconds when it ends, however far it is; 0: never


@dataclass(slots=True)
class HeadBatch:
    """Requests for which a draft head shall guess. First it reads the tokens that it has not read.

    Those of request i are `token_ids[row_start[i] : row_start[i + 1]]`, consecutive positions from
    `positions[i]` on, the request's last token the last. All tokens before that one are in the model's KV
    cache.
    """

    token_ids: Int32Array  # [num_rows]
    row_start: Int32Array  # [num_requests + 1]
    positions: Int32Array  # [num_requests] in the request
    starts: Int32Array  # [num_requests] where it began to read: its own positions count from there
    block_tables: Int32Array  # [num_requests, width] in the model's KV cache, -1 past the end
    head_block_tables: Int32Array  # [num_requests, width] in its own, of the positions that it has read
    max_tokens: Int32Array  # [num_requests] guesses at most, at least 1
    sampling: NDArray[np.void]  # [num_requests] of SAMPLING_DTYPE; penalties count for nothing
    least_chances: Float32Array  # [>= most of max_tokens] of all d guesses so far, for another one to follow


@dataclass(slots=True)
class HeadOutput:
    """What a draft head guesses: for request i, `token_ids[i, : num_tokens[i]]`, a chain."""

    token_ids: Int32Array  # [num_requests, width]
    chances: Float32Array  # [num_requests, width] of each, as the head sees it, after those before it
    num_tokens: Int32Array  # [num_requests] 0 from a head whose weights are damaged


class DraftHead(Protocol):
    """A light trained drafter that lives in a backend, on its model's hidden states."""

    context: int  # tokens of a request that it holds at most, guesses included
    num_blocks: int  # of its own KV cache, BLOCK_SIZE tokens each
    weight_bytes: int  # that one guess reads

    def guess(self, batch: HeadBatch) -> HeadOutput:
        """Read and guess. Raises `BackendError`; changes nothing that the model's steps read."""
        ...


class DraftRequest(Protocol):
    """What a proposer may know of a request; the engine's `Request` is one. Read only."""

    @property
    def key(self) -> str:
        """Unique among the choices of all open requests."""
        ...

    @property
    def token_ids(self) -> Int32Array:
        """Prompt and output so far, [num_tokens]: a view, valid until tokens are appended."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output so far."""
        ...

    @property
    def num_prompt_tokens(self) -> int:
        """Of those, the prompt's."""
        ...

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompt's, found in the prefix cache."""
        ...

    @property
    def index(self) -> int:
        """Which of the n choices; choice 0 speaks for the prompt that they share."""
        ...

    @property
    def hints(self) -> DraftHints:
        """What the caller told."""
        ...

    @property
    def sampling_record(self) -> NDArray[np.void]:
        """[1] of SAMPLING_DTYPE: a proposer that samples does so with the request's own noise."""
        ...

    @property
    def block_ids(self) -> list[int]:
        """Its blocks in the KV cache, in order, for proposers that keep entries of their own beside it."""
        ...

    def digests(self, num_blocks: int) -> list[bytes]:
        """The chained digests of at least the first `num_blocks` full blocks: what each block holds."""
        ...


class Drafter(Protocol):
    """Decides what is drafted, the engine's one partner in this; see `outpace.draft.controller`."""

    def propose(
        self, requests: Sequence[DraftRequest], rooms: Sequence[int], num_rows: int, num_tree_tokens: int
    ) -> Sequence[Draft | None]:
        """A draft of up to `rooms[i]` tokens for request i, or none.

        The step has `num_rows` rows without drafts; trees may have `num_tree_tokens` tokens all together.
        """
        ...

    def observe(self, requests: Sequence[DraftRequest], num_rows: int, seconds: float) -> None:
        """The step is done: what `propose` was asked for has its new tokens; some may have ended.

        `seconds` is what the backend took; 0 where other work in the step makes that no measure.
        """
        ...

    def finish(self, request: DraftRequest) -> None:
        """The request has ended; also for requests that were never asked for."""
        ...

    def close(self) -> None:
        """The engine ends. Safe to call twice."""
        ...
