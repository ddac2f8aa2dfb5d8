"""What classes are worth, learned from what came to pass."""

from __future__ import annotations

import numpy as np
import pytest

from outpace.draft.acceptance import ClassTable, RequestRecord
from outpace.draft.proposer import Proposal


def test_priors_hold_until_something_is_seen() -> None:
    table = ClassTable([0.2, 0.9])
    record = RequestRecord(table)
    assert record.path_shares(Proposal([5, 6, 7], [1, 1, 0])) == pytest.approx([0.9, 0.81, 0.162])


def test_shares_come_to_what_is_true() -> None:
    table = ClassTable([0.9])
    random = np.random.default_rng(0)
    for hit in random.random(2000) < 0.3:
        table.count(0, bool(hit))
    assert table.shares[0] == pytest.approx(0.3, abs=0.08)


def test_old_experience_fades() -> None:
    table = ClassTable([0.5])
    for _ in range(5000):
        table.count(0, True)
    for _ in range(400):
        table.count(0, False)
    assert table.shares[0] < 0.3


def test_a_request_that_does_worse_is_trusted_less() -> None:
    table = ClassTable([0.9])
    for _ in range(300):
        table.count(0, True)
    cold, hot = RequestRecord(table), RequestRecord(table)
    for _ in range(30):
        hot.learn(Proposal([1], [0]), [2])
    proposal = Proposal([1, 1], [0, 0])
    assert hot.path_shares(proposal)[1] < 0.2 * cold.path_shares(proposal)[1]


def test_a_chain_is_judged_up_to_its_first_miss() -> None:
    table = ClassTable([0.5, 0.5, 0.5, 0.5])
    record = RequestRecord(table)
    assert record.learn(Proposal([1, 2, 3, 4], [0, 1, 2, 3]), [1, 2, 9, 4]) == 2
    shares = table.shares
    assert shares[0] > 0.5
    assert shares[1] > 0.5
    assert shares[2] < 0.5
    assert shares[3] == 0.5, "nobody knows what would have come after the miss"


def test_a_chain_is_judged_as_far_as_tokens_came() -> None:
    table = ClassTable([0.5, 0.5])
    assert RequestRecord(table).learn(Proposal([1, 2], [0, 1]), [1]) == 1
    assert table.shares[1] == 0.5


def test_a_tree_is_judged_along_what_came() -> None:
    table = ClassTable([0.5] * 5)
    record = RequestRecord(table)
    tree = Proposal([1, 7, 2, 3, 4], [0, 1, 2, 3, 4], [-1, -1, 0, 1, 2])
    assert record.path_shares(tree) == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.125])
    assert record.learn(tree, [1, 9, 4]) == 1
    shares = table.shares
    assert shares[0] > 0.5
    assert shares[1] < 0.5, "the sibling was wrong"
    assert shares[2] < 0.5
    assert shares[3] == 0.5, "its parent was wrong"
    assert shares[4] == 0.5


def test_nothing_is_ever_sure() -> None:
    table = ClassTable([1.0])
    for _ in range(500):
        table.count(0, True)
    assert RequestRecord(table).path_shares(Proposal([1], [0])) == [0.995]


def test_what_branches_off_counts_for_its_class_and_not_for_the_share() -> None:
    table = ClassTable([0.5, 0.5])
    record = RequestRecord(table)
    for _ in range(100):  # the chain is right, and what branches off it wrong
        assert record.learn(Proposal([1, 2, 8, 9], [0, 0, 1, 1], [-1, 0, -1, 0]), [1, 2, 3]) == 2
    assert record.share > 0.9
    assert table.share > 0.9
    assert table.shares[0] > 0.9 > 0.1 > table.shares[1]
    for _ in range(100):  # and the other way round
        assert record.learn(Proposal([8, 9, 1, 7], [0, 0, 1, 1], [-1, 0, -1, 0]), [1, 2, 3]) == 1
    assert record.share < 0.2
