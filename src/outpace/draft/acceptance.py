"""How often guesses come true: what a proposer's classes are worth, learned from what came to pass.

Every guess whose place was reached is counted, whether it was verified or not: a proposal costs nothing to
judge once the tokens are there. So a proposer that is not asked for drafts, because it would lose, is seen to
improve.
"""

from __future__ import annotations

from collections.abc import Sequence

from outpace.draft.proposer import Proposal

__all__ = ["ClassTable", "RequestRecord"]

_PRIOR_TRIALS = 6.0  # what a prior counts for
_MOST_TRIALS = 400.0  # of a class; older ones fade
_RECORD_TRIALS = 6.0  # how many of a request's own guesses count as much as everyone's
_MOST_RECORDED = 60.0  # of a request; older ones fade
_SUREST = 0.995  # nothing is surer: a draft's last rows must be worth something to be asked for


class ClassTable:
    """One proposer's classes: the share of their guesses that come true, over all requests of a scope."""

    def __init__(self, priors: Sequence[float]) -> None:
        self.shares = list(priors)  # per class, current
        self._hits = [share * _PRIOR_TRIALS for share in priors]
        self._trials = [_PRIOR_TRIALS] * len(priors)
        self._first_hits, self._first_trials = 0.5 * _PRIOR_TRIALS, _PRIOR_TRIALS

    def count(self, index: int, hit: bool, *, first: bool = True) -> None:
        """A guess of class `index` came true, or did not; `first`: of those for its place."""
        trials = self._trials[index] + 1.0
        hits = self._hits[index] + hit
        if trials > _MOST_TRIALS:
            trials *= 0.5
            hits *= 0.5
        self._trials[index] = trials
        self._hits[index] = hits
        self.shares[index] = hits / trials
        if not first:
            return
        if self._first_trials > _MOST_TRIALS:
            self._first_trials *= 0.5
            self._first_hits *= 0.5
        self._first_trials += 1.0
        self._first_hits += hit

    @property
    def share(self) -> float:
        """The share of first guesses that come true, all classes together; none yet: one half."""
        return self._first_hits / self._first_trials


class RequestRecord:
    """How one request does against what its proposer's classes promise: hot sampling lowers all of them."""

    __slots__ = ("_expected", "_first_hits", "_first_trials", "_hits", "table")

    def __init__(self, table: ClassTable) -> None:
        self.table = table
        self._expected = 0.0
        self._hits = 0.0
        self._first_hits = 0.0
        self._first_trials = 0.0

    @property
    def factor(self) -> float:
        """What the classes' shares are to be multiplied by."""
        return (self._hits + _RECORD_TRIALS) / (self._expected + _RECORD_TRIALS)

    def path_shares(self, proposal: Proposal) -> list[float]:
        """For each token, the chance that it is reached and right."""
        shares, factor = self.table.shares, self.factor
        paths: list[float] = []
        if proposal.parents is None:
            path = 1.0
            for index in proposal.classes:
                path *= min(_SUREST, shares[index] * factor)
                paths.append(path)
            return paths
        for index, parent in zip(proposal.classes, proposal.parents, strict=True):
            path = paths[parent] if parent >= 0 else 1.0
            paths.append(path * min(_SUREST, shares[index] * factor))
        return paths

    def learn(self, proposal: Proposal, token_ids: Sequence[int]) -> int:
        """Judge a proposal by the tokens that came; returns how many of them, from the first on, it had."""
        if proposal.parents is not None:
            return self._learn_tree(proposal, proposal.parents, token_ids)
        count = 0
        for guess, index, token_id in zip(proposal.token_ids, proposal.classes, token_ids, strict=False):
            if not self._judge(index, guess == token_id, first=True):
                break
            count += 1
        return count

    def _learn_tree(self, proposal: Proposal, parents: Sequence[int], token_ids: Sequence[int]) -> int:
        depths = {-1: 0}  # of the nodes that came true
        judged: set[int] = set()  # nodes of which a child was
        for node, (guess, index, parent) in enumerate(
            zip(proposal.token_ids, proposal.classes, parents, strict=True)
        ):
            depth = depths.get(parent)
            if depth is None or depth == len(token_ids):
                continue
            if self._judge(index, guess == token_ids[depth], first=parent not in judged):
                depths[node] = depth + 1
            judged.add(parent)
        return max(depths.values())

    def _judge(self, index: int, hit: bool, *, first: bool) -> bool:
        self._expected += self.table.shares[index]
        self._hits += hit
        if first:
            self._first_trials += 1.0
            self._first_hits += hit
        if self._first_trials > _MOST_RECORDED:
            self._first_trials *= 0.5
            self._first_hits *= 0.5
            self._expected *= 0.5
            self._hits *= 0.5
        self.table.count(index, hit, first=first)
        return hit

    @property
    def share(self) -> float:
        """The share of this request's first guesses that come true; none yet: everyone's."""
        hits = self._first_hits + self.table.share * _RECORD_TRIALS
        return hits / (self._first_trials + _RECORD_TRIALS)
