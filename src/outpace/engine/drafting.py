"""Asks the drafter, and takes nothing from it on trust: a draft may be wrong in any way without harm."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from outpace.draft.tree import first_path
from outpace.engine.scheduler import StepPlan
from outpace.types import Draft, Drafter, DraftRequest

__all__ = ["finish", "observe", "propose"]

_log = logging.getLogger(__name__)
_NO_DRAFT = Draft(())


def propose(drafter: Drafter, plan: StepPlan, vocab_size: int, max_tree_tokens: int) -> list[Draft]:
    """A draft, perhaps empty, for each of the plan's requests, within the room that the plan gives.

    `parents` is None in each that is a chain; the others have at most `max_tree_tokens` tokens, all together.
    """
    drafts = [_NO_DRAFT] * len(plan.requests)
    asked = [i for i, room in enumerate(plan.max_draft) if room]
    if not asked:
        return drafts
    requests = [plan.requests[i] for i in asked]
    rooms = [plan.max_draft[i] for i in asked]
    try:
        proposed = drafter.propose(requests, rooms, sum(plan.num_new), max_tree_tokens)
    except Exception:  # plain decoding goes on
        _log.exception("the drafter failed; this step goes without drafts")
        return drafts
    for i, room, draft in zip(asked, rooms, proposed, strict=False):
        if draft is None:
            continue
        drafts[i] = taken = _sound(draft, room, vocab_size, max_tree_tokens)
        if taken.parents is not None:
            max_tree_tokens -= len(taken.token_ids)
    return drafts


def observe(drafter: Drafter, plan: StepPlan, num_rows: int, seconds: float) -> None:
    """Tell the drafter what became of the requests that it was asked about.

    The step's time says what rows cost only where all of them decode.
    """
    requests = [request for i, request in enumerate(plan.requests) if plan.max_draft[i]]
    if not requests:
        return
    try:
        drafter.observe(requests, num_rows, seconds if sum(plan.num_new) == len(plan.num_new) else 0.0)
    except Exception:  # it learns nothing
        _log.exception("the drafter failed to learn from a step")


def finish(drafter: Drafter, request: DraftRequest) -> None:
    """Tell the drafter that a request has ended, unless it has no business with it."""
    if not request.hints.drafts:
        return
    try:
        drafter.finish(request)
    except Exception:  # what it keeps is its own loss
        _log.exception("the drafter failed to end a request")


def _sound(draft: Draft, room: int, vocab_size: int, max_tree_tokens: int) -> Draft:
    """What can be verified of a draft."""
    try:
        if draft.parents is None:
            return Draft(_chain(draft.token_ids, room, vocab_size), None, draft.proposer)
        tokens, parents = _tree(draft.token_ids, draft.parents, room, vocab_size, max_tree_tokens)
        return Draft(tokens, parents, draft.proposer)
    except Exception:  # whatever it is, it is no draft
        _log.exception("a draft is broken; this step goes without it")
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
) -> tuple[list[int], list[int] | None]:
    """A tree's tokens and parents, cut to the room there is.

    Where that is more than a tree may have, its first path.

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
    own_parents = [parent for parent, _ in places]
    if own_parents == list(range(-1, len(places) - 1)):
        return tokens, None
    if len(places) > max_tree_tokens:
        return [tokens[node] for node in first_path(own_parents)], None
    return tokens, own_parents
