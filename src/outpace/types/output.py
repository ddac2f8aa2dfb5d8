"""What a caller gets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # a stop id or a stop string
    LENGTH = "length"  # max_tokens, the end of the context, or its deadline
    TIMEOUT = "timeout"  # its deadline passed before its first token, or would have
    ABORT = "abort"  # the caller cancelled, or the client went away
    ERROR = "error"  # the step that carried it failed

    @property
    def is_failure(self) -> bool:
        """Whether the answer is not to be used."""
        return self in {FinishReason.TIMEOUT, FinishReason.ABORT, FinishReason.ERROR}


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token's log probability and its likeliest rivals, in nats, of the raw logits."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class DraftCount:
    """What one proposer did for a request."""

    proposer: str
    num_drafted: int
    num_accepted: int


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """One piece of a request's stream: new tokens, the text they complete, and the end if it is one."""

    request_id: str
    index: int  # which of the n choices
    token_ids: tuple[int, ...]
    text: str  # whole characters only; may be empty while one is incomplete
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None  # with FinishReason.ERROR
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    num_output_tokens: int = 0  # so far
    num_drafted: int = 0  # draft tokens proposed so far
    num_accepted: int = 0  # draft tokens accepted so far
    num_from_draft: int = 0  # of token_ids, the first so many were drafted
    proposer: str = ""  # by whom
    draft_counts: tuple[DraftCount, ...] = ()  # with the finish_reason: over the whole request
    stop: str | None = None  # with FinishReason.STOP: the stop string that came; None: a stop id
    embedding: tuple[float, ...] | None = None  # with `SamplingParams.embed`: see `outpace.engine.embedding`
