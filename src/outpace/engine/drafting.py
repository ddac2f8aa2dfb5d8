"""Asks the drafter, and takes nothing from it on trust: a draft may be wrong in any way without harm."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from outpace.engine.request import Request
from outpace.engine.scheduler import StepPlan
from outpace.types import Draft, Drafter

__all__ = ["propose"]

_log = logging.getLogger(__name__)
_NO_DRAFT: tuple[int, ...] = ()


def propose(drafter: Drafter, plan: StepPlan, vocab_size: int) -> list[Sequence[int]]:
    """A draft, perhaps empty, for each of the plan's requests, within the room that the plan gives."""
    drafts: list[Sequence[int]] = [_NO_DRAFT] * len(plan.requests)
    for i, room in enumerate(plan.max_draft):
        if room:
            request = plan.requests[i]
            drafts[i] = _ask(drafter, request, room, vocab_size)
            request.num_drafted += len(drafts[i])
    return drafts


def _ask(drafter: Drafter, request: Request, room: int, vocab_size: int) -> list[int]:
    try:
        draft = drafter.propose(request.key, request.token_ids, room)
    except Exception:  # plain decoding goes on
        _log.exception("the drafter failed; this step goes without its draft")
        return []
    return [] if draft is None else _chain(draft, room, vocab_size)


def _chain(draft: Draft, room: int, vocab_size: int) -> list[int]:
    """The draft's first path, cut to the room there is and at the first id that is no token."""
    chain: list[int] = []
    for i, token_id in enumerate(draft.token_ids[:room]):
        follows = draft.parents is None or draft.parents[i] == i - 1
        if not (follows and 0 <= token_id < vocab_size):
            break
        chain.append(int(token_id))
    return chain
