"""What a stream of tokens took: TTFT, decode speed, acceptance length."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter

from outpace.types import DraftCount, FinishReason, TokenDelta


@dataclass(slots=True)
class StreamTiming:
    """Follows one request's deltas as they arrive. Make it when the request is submitted.

    Decode speed counts the tokens after the first delta over the time since it: the first delta's
    time is prefill (TTFT), not decode.
    """

    started: float = field(default_factory=perf_counter)  # seconds, perf_counter
    first: float | None = None  # when the first token came
    last: float = 0.0  # when the newest token came
    token_ids: list[int] = field(default_factory=list[int])
    num_first_tokens: int = 0  # tokens in the first delta
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_accepted: int = 0  # draft tokens accepted, over the whole request
    num_accepted_first: int = 0  # of those, in the first delta
    draft_counts: tuple[DraftCount, ...] = ()  # once it has ended
    finish_reason: FinishReason | None = None

    def observe(self, delta: TokenDelta) -> None:
        """Count one delta, now."""
        if delta.token_ids:
            self.last = perf_counter()
            if self.first is None:
                self.first = self.last
                self.num_first_tokens = len(delta.token_ids)
                self.num_accepted_first = delta.num_accepted
            self.token_ids += delta.token_ids
        self.num_prompt_tokens = delta.num_prompt_tokens
        self.num_cached_tokens = delta.num_cached_tokens
        self.num_accepted = delta.num_accepted
        self.draft_counts = delta.draft_counts
        self.finish_reason = delta.finish_reason

    @property
    def ttft_ms(self) -> float | None:
        """Milliseconds from submission to the first token; None without a token."""
        return None if self.first is None else (self.first - self.started) * 1e3

    @property
    def decode_seconds(self) -> float:
        """Seconds from the first token to the newest."""
        return 0.0 if self.first is None else self.last - self.first

    @property
    def num_decode_tokens(self) -> int:
        """Tokens that came after the first delta."""
        return len(self.token_ids) - self.num_first_tokens

    @property
    def num_decode_steps(self) -> int:
        """Forward passes that made them: each yields its accepted drafts and one token more."""
        return self.num_decode_tokens - (self.num_accepted - self.num_accepted_first)

    @property
    def tok_s(self) -> float | None:
        """Decode tokens per second; None where nothing was decoded after the first delta."""
        return rate(self.num_decode_tokens, self.decode_seconds)

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per decode step; 1 without drafts, None without a decode step."""
        return rate(self.num_decode_tokens, self.num_decode_steps)


def rate(amount: float, per: float) -> float | None:
    """`amount / per`; None where there is nothing to divide or to divide by."""
    return amount / per if amount > 0 and per > 0 else None
