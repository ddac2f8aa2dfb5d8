"""One choice of one request: its tokens, its blocks, how far it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from outpace.engine.disk_tier import Load
from outpace.engine.embedding import PooledStates
from outpace.engine.prefix_cache import extend_digests
from outpace.engine.sampling import PackedSampling
from outpace.errors import InvalidParameterError
from outpace.text.detokenizer import Detokenizer
from outpace.text.grammar import AnswerState
from outpace.text.stop import StopMatcher
from outpace.types import BLOCK_SIZE, DraftCount, DraftHints, FinishReason, Int32Array, SamplingParams

__all__ = ["Request", "as_prompt"]


class Request:
    """A choice from submit to finish. The engine's thread alone changes it after submit.

    Tokens `0 .. num_computed_tokens` have their keys and values in the blocks of `block_ids`, in order.
    """

    __slots__ = (
        "_digests",
        "_token_buffer",
        "admitted_at",
        "answer_state",
        "block_ids",
        "block_version",
        "continues",
        "detokenizer",
        "draft_counts",
        "finish_reason",
        "first_token_at",
        "hints",
        "index",
        "key",
        "last_token_at",
        "last_token_id",
        "leader",
        "load",
        "max_total_tokens",
        "num_accepted",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_disk_tokens",
        "num_drafted",
        "num_first_tokens",
        "num_prompt_tokens",
        "num_registered_blocks",
        "num_tokens",
        "params",
        "pooled",
        "prefix_scope",
        "prompt_counted",
        "queue_place",
        "request_id",
        "sampling",
        "stop_ids",
        "stop_matcher",
        "submitted_at",
    )

    def __init__(
        self,
        request_id: str,
        index: int,
        prompt_token_ids: Int32Array,
        params: SamplingParams,
        sampling: PackedSampling,
        *,
        stop_ids: frozenset[int],
        max_total_tokens: int,
        detokenizer: Detokenizer,
        hints: DraftHints,
        answer_state: AnswerState | None = None,
        prefix_scope: bytes = b"",
        prompt_digests: Iterable[bytes] = (),
    ) -> None:
        self.request_id = request_id
        self.index = index  # which of the n choices
        self.key = f"{request_id}/{index}"  # unique among choices; the drafter's id
        self.params = params
        self.sampling = sampling
        self.stop_ids = stop_ids
        self.max_total_tokens = max_total_tokens  # prompt and output: max_tokens or the context ends here
        self.detokenizer = detokenizer
        self.hints = hints
        self.answer_state = answer_state  # where the output stands in its grammar, if it has one
        self.prefix_scope = prefix_scope  # whose cached prefixes it may find: those of the same bytes
        self.stop_matcher = StopMatcher(params.stop) if params.stop else None
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_tokens = self.num_prompt_tokens
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0  # of the prompt, when it was first admitted
        self.num_disk_tokens = 0  # of these, those that came from disk
        self.prompt_counted = False  # whether num_cached_tokens is known
        self.continues = False  # whether it goes on where an earlier request ended
        self.num_drafted = 0
        self.num_accepted = 0
        self.draft_counts: dict[str, DraftCount] = {}  # by proposer
        # Of the prompt's embedding, as far as it is computed; None where none is asked for.
        self.pooled = PooledStates(self.num_prompt_tokens) if params.embed else None
        self.last_token_id = int(prompt_token_ids[-1])
        self.submitted_at = 0.0  # time.perf_counter() seconds, as is
        self.admitted_at = 0.0  # when it first got blocks
        self.first_token_at = 0.0
        self.num_first_tokens = 0  # that came then
        self.last_token_at = 0.0  # when the newest tokens came
        self.finish_reason: FinishReason | None = None
        self.queue_place: tuple[float, int] | None = None  # among those that wait; kept for a return
        # Who computes the beginning of its prompt just now, that one's `block_version`, and how many blocks.
        self.leader: tuple[Request, int, int] | None = None
        self.block_ids: list[int] = []
        self.block_version = 0  # changes when block_ids is emptied
        self.load: Load | None = None  # what comes from disk just now; until then it does not run
        self.num_registered_blocks = 0  # full blocks that the prefix cache has been told of
        self._digests = list(prompt_digests)  # of its full blocks, as far as they are known
        self._token_buffer: Int32Array = np.empty(self.num_prompt_tokens + 64, np.int32)
        self._token_buffer[: self.num_prompt_tokens] = prompt_token_ids

    @property
    def token_ids(self) -> Int32Array:
        """Prompt and output so far: a view, [num_tokens]."""
        return self._token_buffer[: self.num_tokens]

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def sampling_record(self) -> NDArray[np.void]:
        """Its sampling parameters as the backends read them, [1] of SAMPLING_DTYPE."""
        return self.sampling.record

    def count_draft(self, proposer: str, num_drafted: int, num_accepted: int) -> None:
        """A step verified a draft of the proposer's."""
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        before = self.draft_counts.get(proposer)
        if before is not None:
            num_drafted += before.num_drafted
            num_accepted += before.num_accepted
        self.draft_counts[proposer] = DraftCount(proposer, num_drafted, num_accepted)

    def append(self, token_id: int) -> None:
        """Append a generated token."""
        if self.num_tokens == len(self._token_buffer):
            room = np.empty(len(self._token_buffer), np.int32)
            self._token_buffer = np.concatenate([self._token_buffer, room])
        self._token_buffer[self.num_tokens] = token_id
        self.num_tokens += 1
        self.last_token_id = token_id

    def digests(self, num_blocks: int) -> list[bytes]:
        """The chained digests of at least the first `num_blocks` full blocks."""
        if len(self._digests) < num_blocks:
            extend_digests(self._digests, self.token_ids, num_blocks, self.prefix_scope)
        return self._digests

    @property
    def num_blocks_needed(self) -> int:
        """Blocks that hold all of its present tokens."""
        return -(-self.num_tokens // BLOCK_SIZE)


def as_prompt(token_ids: Sequence[int], vocab_size: int) -> Int32Array:
    """The prompt as an array; `InvalidParameterError` where it is empty or has an id that the model lacks."""
    if len(token_ids) == 0:
        raise InvalidParameterError("the prompt is empty; give at least one token", "prompt")
    try:
        prompt = np.asarray(token_ids)
    except (ValueError, OverflowError):  # ragged, or beyond 64 bits
        prompt = np.empty(0)
    if prompt.ndim != 1 or prompt.dtype.kind not in "iu":
        raise InvalidParameterError(
            "the prompt must be a flat sequence of whole numbers, its token ids", "prompt"
        )
    if prompt.min() < 0 or prompt.max() >= vocab_size:
        raise InvalidParameterError(f"the prompt's token ids must be from 0 to {vocab_size - 1}", "prompt")
    return prompt.astype(np.int32)
