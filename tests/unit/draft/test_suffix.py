"""What followed the last places that read as a text's end does: a request's own, and everyone's."""

from __future__ import annotations

import numpy as np
import pytest
from asking import Asking

from outpace import _native
from outpace.draft.proposer import Proposal
from outpace.draft.suffix import SHARED_ORDERS, SuffixProposer, as_proposals

ONE_OF_FEW, HALF, ALL, ALONE = range(4)  # agreement of those places


def own(token_ids: list[int]) -> Proposal | None:
    found = SuffixProposer().propose([Asking(tokens=token_ids)], [8])
    return found[0][1] if found else None


def test_one_token_that_was_there_before_is_enough() -> None:
    found = own([5, 6, 7, 9, 5])
    assert found is not None
    assert list(found.token_ids[:3]) == [6, 7, 9]
    assert list(found.classes[:3]) == [ALONE, 4 + ALONE, 8 + ALONE]  # each right one makes the next surer


def test_what_followed_it_differently_becomes_branches() -> None:
    found = own([5, 6, 1, 5, 7, 2, 5])
    assert found is not None
    assert found.parents is not None
    first = [token for token, parent in zip(found.token_ids, found.parents, strict=True) if parent == -1]
    assert first == [7, 6]  # the newest first
    assert [c for c, parent in zip(found.classes, found.parents, strict=True) if parent == -1] == [HALF, HALF]


def test_what_always_followed_it_is_surer_than_what_did_once() -> None:
    found = own([5, 6, 1, 5, 6, 2, 5, 6, 3, 5])
    assert found is not None
    assert (found.token_ids[0], found.classes[0]) == (6, ALL)
    priors = SuffixProposer.priors
    assert priors[ALL] > priors[ALONE] > priors[HALF] > priors[ONE_OF_FEW]


def test_a_longer_end_goes_before_the_last_token_alone() -> None:
    found = own([4, 5, 6, 1, 5, 7, 2, 4, 5])
    assert found is not None
    assert found.token_ids[0] == 6


def test_a_token_that_was_never_there_has_no_guess() -> None:
    assert own([5, 6, 7, 8]) is None


@pytest.mark.parametrize(("end", "guess"), [((6, 7), 8), ((1, 7), None)])
def test_in_the_text_of_all_requests_two_tokens_are_needed(end: tuple[int, int], guess: int | None) -> None:
    index = _native.TokenIndex(64, SHARED_ORDERS)
    index.append(np.array([5, 6, 7, 8, 9], np.int32))
    index.end_document()
    found = as_proposals(_native.propose_shared([index], [np.array(end, np.int32)], [8]))
    assert [proposal.token_ids[0] for _, proposal in found] == ([] if guess is None else [guess])
