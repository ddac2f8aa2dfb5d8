"""Asks the drafter, and takes nothing from it on trust: a draft may be wrong in any way without harm."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from outpace.engine.request import Request
from outpace.engine.scheduler import StepPlan
from outpace.types import Draft, Drafter

__all__ = ["propose"]

_log = logging.getLogger(__name__)
_NO_DRAFT = Draft(())


def propose(drafter: Drafter, plan: StepPlan, vocab_size: int, max_tree_tokens: int) -> list[Draft]:
    """A draft, perhaps empty, for each of the plan's requests, within the room that the plan gives.

    `parents` is None in each that is a chain; the others have at most `max_tree_tokens` tokens, all together.
    """
    drafts = [_NO_DRAFT] * len(plan.requests)
    for i, room in enumerate(plan.max_draft):
        if room:
            request = plan.requests[i]
            draft = _ask(drafter, request, room, vocab_size, max_tree_tokens)
            if draft.parents is not None:
                max_tree_tokens -= len(draft.token_ids)
            request.num_drafted += len(draft.token_ids)
            drafts[i] = draft
    return drafts


def _ask(drafter: Drafter, request: Request, room: int, vocab_size: int, max_tree_tokens: int) -> Draft:
    try:
        draft = drafter.propose(request.key, request.token_ids, room)
        if draft is None:
            return _NO_DRAFT
        if draft.parents is None:
            return Draft(_chain(draft.token_ids, room, vocab_size))
        return _tree(draft.token_ids, draft.parents, room, vocab_size, max_tree_tokens)
    except Exception:  # plain decoding goes on
        _log.exception("the drafter failed; this step goes without its draft")
        return _NO_DRAFT


def _chain(token_ids: Sequence[int], room: int, vocab_size: int) -> list[int]:
    """A chain, cut to the room there is and at the first id that is no token."""
    chain: list[int] = []
    for token_id in token_ids[:room]:
        if not 0 <= token_id < vocab_size:
            break
        chain.append(int(token_id))
    return chain


def _tree(
    token_ids: Sequence[int], parents: Sequence[int], room: int, vocab_size: int, max_tree_tokens: int
) -> Draft:
    """A tree, cut to the room there is; its first path where that is more than a tree may have.

    An id that is no token, or a parent that does not precede it, is dropped with all that follows it.
    Equal guesses at one place become one: the second could never be accepted.
    """
    kept = {-1: -1}  # index in the draft -> index in the result
    places: dict[tuple[int, int], int] = {}  # (parent, token id) in the result -> its index
    for i, (token_id, parent) in enumerate(zip(token_ids, parents, strict=False)):
        if parent not in kept or not 0 <= token_id < vocab_size:
            continue
        place = (kept[parent], int(token_id))
        if place not in places:
            if len(places) == room:
                break
            places[place] = len(places)
        kept[i] = places[place]
    tokens = [token for _, token in places]
    if all(parent == i - 1 for i, (parent, _) in enumerate(places)):
        return Draft(tokens)
    if len(places) > max_tree_tokens:
        return Draft(_first_path(list(places)))
    return Draft(tokens, [parent for parent, _ in places])


def _first_path(nodes: Sequence[tuple[int, int]]) -> list[int]:
    """The tokens from the root down, always through the first child; nodes are (parent, token id)."""
    path: list[int] = []
    last = -1
    for i, (parent, token_id) in enumerate(nodes):
        if parent == last:
            path.append(token_id)
            last = i
    return path
