"""What guesses, in whatever way: the controller's partners, each a file of this room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from outpace.types import DraftRequest

__all__ = ["ComputingProposer", "Proposal", "Proposer"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """One proposer's guess at what follows a request's last token: a chain, or a tree as in `Draft`.

    `classes[i]` says how sure the proposer is of token i where the ones before it are right, in terms of its
    own: what a class is worth is learned from what came to pass. Chains and paths are worth less the longer
    they are, so a cut at any place leaves a good proposal.
    """

    token_ids: Sequence[int]
    classes: Sequence[int]
    parents: Sequence[int] | None = None


class Proposer(Protocol):
    """Guesses tokens, in the cheapest way it knows. Must be quick and may be wrong.

    One that looks things up costs nothing: it is always asked for all it knows, and judged by what comes to
    pass. It sees every token of a request that is asked for, in `token_ids`: what is new since the last call
    is what it has to learn. Its classes are the indices of `priors`.
    """

    @property
    def name(self) -> str:
        """As metrics and reports show it."""
        ...

    @property
    def priors(self) -> Sequence[float]:
        """For each class, the share of its tokens that come true, as far as is known beforehand."""
        ...

    def propose(
        self, requests: Sequence[DraftRequest], max_tokens: Sequence[int]
    ) -> Sequence[tuple[int, Proposal]]:
        """Guess up to `max_tokens[i]` tokens to follow request i; the guesses there are, each with its i."""
        ...

    def finish(self, request: DraftRequest) -> None:
        """The request has ended; drop what is kept for it, or keep what others may gain from."""
        ...

    def close(self) -> None:
        """The engine ends; write what shall survive. Safe to call twice."""
        ...


class ComputingProposer(Proposer, Protocol):
    """A proposer whose guesses cost time: it is asked for as many as pay."""

    def propose(
        self,
        requests: Sequence[DraftRequest],
        max_tokens: Sequence[int],
        least_chances: Sequence[float] = (),
    ) -> Sequence[tuple[int, Proposal]]:
        """As any proposer, but for guesses of too little chance.

        After d of them it makes no further one where all are right with a chance below `least_chances[d]`, as
        it sees them.
        """
        ...

    def seconds(self, num_requests: int) -> float:
        """What one more token for each of so many requests costs."""
        ...

    def setup_seconds(self, request: DraftRequest) -> float:
        """What it costs beyond that, once, to take in what it has not seen of a request."""
        ...
