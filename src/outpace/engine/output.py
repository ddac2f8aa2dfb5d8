"""From the tokens that a step chose to what the caller gets: where the request ends, text, deltas.

A step with accepted drafts brings several tokens. They are taken one by one, so a stop inside them ends the
request exactly where plain decoding would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outpace.engine.request import Request
from outpace.types import FinishReason, StepOutput, TokenDelta, TokenLogprob

__all__ = ["join_deltas", "take_tokens", "terminal_delta", "token_delta", "token_logprobs"]


def take_tokens(request: Request, token_ids: list[int]) -> tuple[list[int], str]:
    """Append the chosen tokens up to where the request ends; return those taken and the text they complete.

    Sets `request.finish_reason` where it ends: at a stop id (taken, without text), at a stop string (its text
    and what follows is dropped), at `max_total_tokens`.
    """
    if request.stop_matcher is None:
        return _take_plain(request, token_ids)
    taken: list[int] = []
    text = ""
    for token_id in token_ids:
        one, piece = _take_plain(request, [token_id])
        taken += one
        emit, stopped = request.stop_matcher.push(piece)
        text += emit
        if stopped:
            request.finish_reason = FinishReason.STOP
        if request.finish_reason is not None:
            return taken, text if stopped else text + request.stop_matcher.flush()
    return taken, text


def _take_plain(request: Request, token_ids: list[int]) -> tuple[list[int], str]:
    """Without stop strings."""
    stop_ids, limit = request.stop_ids, request.max_total_tokens
    for count, token_id in enumerate(token_ids, 1):
        request.append(token_id)
        if token_id in stop_ids:
            request.finish_reason = FinishReason.STOP
            text = request.detokenizer.push(token_ids[: count - 1]) + request.detokenizer.flush()
            return token_ids[:count], text
        if request.num_tokens >= limit:
            request.finish_reason = FinishReason.LENGTH
            text = request.detokenizer.push(token_ids[:count]) + request.detokenizer.flush()
            return token_ids[:count], text
    return token_ids, request.detokenizer.push(token_ids)


def token_delta(
    request: Request,
    taken: list[int],
    text: str,
    logprobs: tuple[TokenLogprob, ...],
    num_from_draft: int,
    proposer: str,
) -> TokenDelta:
    """The delta of a step's tokens, the first `num_from_draft` of them drafted; terminal at the end."""
    return TokenDelta(
        request.request_id,
        request.index,
        tuple(taken),
        text,
        logprobs,
        request.finish_reason,
        None,
        request.num_prompt_tokens,
        request.num_cached_tokens,
        request.num_tokens - request.num_prompt_tokens,
        request.num_drafted,
        request.num_accepted,
        num_from_draft,
        proposer if num_from_draft else "",
        tuple(request.draft_counts.values()) if request.finish_reason is not None else (),
        request.stop_matcher.found if request.stop_matcher is not None else None,
        request.pooled.mean() if request.pooled is not None and request.pooled.is_whole else None,
    )


def terminal_delta(request: Request, reason: FinishReason, error: str | None = None) -> TokenDelta:
    """The end of a request, without a token. Text that was held back, a stop's possible start, comes too."""
    request.finish_reason = reason
    text = ""
    if reason in {FinishReason.ABORT, FinishReason.LENGTH}:
        text = request.detokenizer.flush()
        if request.stop_matcher is not None:
            text = request.stop_matcher.push(text)[0] + request.stop_matcher.flush()
    return TokenDelta(
        request_id=request.request_id,
        index=request.index,
        token_ids=(),
        text=text,
        finish_reason=reason,
        error=error,
        num_prompt_tokens=request.num_prompt_tokens,
        num_cached_tokens=request.num_cached_tokens,
        num_output_tokens=request.num_output_tokens,
        num_drafted=request.num_drafted,
        num_accepted=request.num_accepted,
        draft_counts=tuple(request.draft_counts.values()),
    )


def token_logprobs(out: StepOutput, row: int, taken: list[int], k: int) -> tuple[TokenLogprob, ...]:
    """The log probabilities of request `row`'s tokens, with the k likeliest of each; k = -1: none."""
    if k < 0 or out.logprobs is None:
        return ()
    chosen = out.logprobs[row].tolist()
    if k == 0 or out.top_token_ids is None or out.top_logprobs is None:
        return tuple(TokenLogprob(token_id, chosen[i]) for i, token_id in enumerate(taken))
    ids = out.top_token_ids[row, :, :k].tolist()
    values = out.top_logprobs[row, :, :k].tolist()
    return tuple(
        TokenLogprob(token_id, chosen[i], tuple(zip(ids[i], values[i], strict=True)))
        for i, token_id in enumerate(taken)
    )


def join_deltas(deltas: Sequence[TokenDelta]) -> list[TokenDelta]:
    """One delta of each choice, for all of its `deltas`, which follow on each other; not who drafted.

    Failures stay apart and come last: who reads them raises, and what was said before must be out by then.
    """
    by_choice: dict[int, list[TokenDelta]] = {}
    failures: list[TokenDelta] = []
    for delta in deltas:
        if delta.finish_reason is not None and delta.finish_reason.is_failure:
            failures.append(delta)
        else:
            by_choice.setdefault(delta.index, []).append(delta)
    return [each[0] if len(each) == 1 else _joined(each) for each in by_choice.values()] + failures


def _joined(deltas: Sequence[TokenDelta]) -> TokenDelta:
    return replace(
        deltas[-1],
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        text="".join([delta.text for delta in deltas]),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        num_from_draft=0,
        proposer="",
    )
