"""Keeps answers within their grammars: masks for a step's rows, and what a grammar forces as drafts.

A draft is cut where it does not fit, and goes on by itself with what the grammar leaves no choice about: such
tokens are right for certain, so they come in the step that comes anyway and cost no pass of their own.
"""

from __future__ import annotations

import numpy as np

from outpace.draft.tree import first_path
from outpace.engine.request import Request
from outpace.engine.scheduler import StepPlan
from outpace.types import Draft, UInt32Array

__all__ = ["PROPOSER", "constrain"]

PROPOSER = "grammar"
"""As metrics and reports show tokens that a grammar forced."""


def constrain(
    plan: StepPlan, drafts: list[Draft], num_known: int, vocab_size: int
) -> list[UInt32Array | None] | None:
    """The masks of a step, `StepBatch.token_masks`; changes the drafts of requests that have a grammar.

    `num_known` tokens are in the grammars' vocabulary, `vocab_size` in the model's output.
    """
    masks: list[UInt32Array | None] = [None] * len(plan.requests)
    constrained = False
    for i, request in enumerate(plan.requests):
        if request.answer_state is not None and plan.sample[i]:
            constrained = True
            drafts[i], rows = _constrain(request, drafts[i], plan.max_draft[i], num_known)
            masks[i] = np.ascontiguousarray(rows[:, : -(-vocab_size // 32)]).reshape(-1)
    return masks if constrained else None


def _constrain(request: Request, draft: Draft, room: int, num_known: int) -> tuple[Draft, UInt32Array]:
    """The draft that fits and goes on with what is forced; rows of bits, of what may follow the request's
    last token and each of the draft's.
    """
    state = request.answer_state
    assert state is not None
    guesses = list(draft.token_ids)
    if draft.parents is not None:
        guesses = [draft.token_ids[node] for node in first_path(draft.parents)]
    masks: UInt32Array = np.zeros((room + 1, -(-num_known // 32)), np.uint32)
    token_ids: list[int] = []
    num_forced = 0
    state.fill_mask(masks[0])
    while len(token_ids) < room:
        forced = state.forced()
        if forced:
            token_id = forced[0]
        elif len(token_ids) < len(guesses):
            token_id = guesses[len(token_ids)]
        else:
            break
        if forced and guesses[len(token_ids) : len(token_ids) + 1] != [token_id]:
            guesses = []  # they led elsewhere
        if token_id in request.stop_ids or not state.fits(token_id):
            break
        if not state.fill_mask(masks[len(token_ids) + 1]):
            break
        token_ids.append(token_id)
        num_forced += bool(forced)
    state.rewind()
    proposer = PROPOSER if 2 * num_forced > len(token_ids) else draft.proposer
    return Draft(token_ids, None, proposer), masks[: len(token_ids) + 1]
