"""Guesses from text that was seen before: what followed the last places that read as the present end does.

The places are found by `native/token_index.h`; where they disagree on what follows, the guess is a tree.
SuffixDecoding (Oliaro et al., 2024) and prompt lookup are the models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from outpace import _native
from outpace.draft.proposer import Proposal
from outpace.types import DraftRequest

if TYPE_CHECKING:
    from outpace.draft.store import SharedText

__all__ = ["SharedProposer", "SuffixProposer", "as_proposals"]

OWN_ORDERS = (1, 2, 4, 8)
SHARED_ORDERS = (2, 4, 8)
"""Lengths of ends that are looked up; in the text of all requests, one token says next to nothing."""

_LONGEST_END = 64  # tokens that are compared, TokenIndex::kLongest
_UNBOUNDED = 1 << 30

# The share of guesses that come true, by degree of length (so many tokens and more) and by
# agreement of what followed: one of few, at least half, all of several, nobody to compare with. As found in
# 20,000 tokens of chat and code by three models; what a request's own guesses do soon outweighs it.
_OWN_SHARES = (
    (0.10, 0.16, 0.54, 0.31),  # 1
    (0.13, 0.17, 0.78, 0.47),  # 2
    (0.15, 0.19, 0.87, 0.58),  # 3
    (0.15, 0.26, 0.90, 0.67),  # 4
    (0.15, 0.29, 0.95, 0.74),  # 6
    (0.15, 0.34, 0.95, 0.78),  # 8
    (0.20, 0.42, 0.96, 0.85),  # 12
    (0.20, 0.50, 0.97, 0.90),  # 16
    (0.20, 0.50, 0.97, 0.93),  # 24
    (0.20, 0.60, 0.97, 0.95),  # 32
    (0.30, 0.70, 0.97, 0.97),  # 48
)
_OWN_PRIORS = tuple(share for shares in _OWN_SHARES for share in shares)
# Other requests' short ends say half as much, their long ones the same.
_SHARED_PRIORS = tuple(
    share * (0.5 + 0.05 * degree) for degree, shares in enumerate(_OWN_SHARES) for share in shares
)
assert len(_OWN_PRIORS) == len(_SHARED_PRIORS) == _native.num_suffix_classes


class SuffixProposer:
    """Looks in a request's own prompt and output; a `outpace.draft.proposer.Proposer`."""

    name = "suffix"
    priors: Sequence[float] = _OWN_PRIORS

    def __init__(self) -> None:
        self._indices: dict[str, _native.TokenIndex] = {}

    def propose(
        self, requests: Sequence[DraftRequest], max_tokens: Sequence[int]
    ) -> Sequence[tuple[int, Proposal]]:
        """See `outpace.draft.proposer.Proposer`."""
        indices = [self._index(request.key) for request in requests]
        texts = [request.token_ids for request in requests]
        return as_proposals(_native.propose_own(indices, texts, list(max_tokens)))

    def _index(self, key: str) -> _native.TokenIndex:
        index = self._indices.get(key)
        if index is None:
            index = self._indices[key] = _native.TokenIndex(_UNBOUNDED, OWN_ORDERS)
        return index

    def finish(self, request: DraftRequest) -> None:
        """Drop the request's index."""
        self._indices.pop(request.key, None)

    def close(self) -> None:
        """Nothing is kept."""
        self._indices.clear()


class SharedProposer:
    """Looks in what earlier requests of the same scope said; a `outpace.draft.proposer.Proposer`."""

    name = "shared"
    priors: Sequence[float] = _SHARED_PRIORS

    def __init__(self, text: SharedText) -> None:
        self._text = text

    def propose(
        self, requests: Sequence[DraftRequest], max_tokens: Sequence[int]
    ) -> Sequence[tuple[int, Proposal]]:
        """See `outpace.draft.proposer.Proposer`."""
        indices = [self._text.index(request.hints.scope) for request in requests]
        ends = [request.token_ids[-_LONGEST_END:] for request in requests]
        return as_proposals(_native.propose_shared(indices, ends, list(max_tokens)))

    def finish(self, request: DraftRequest) -> None:
        """Keep what the request said, for those that come after it."""
        self._text.add(request)

    def close(self) -> None:
        """Write what is to survive."""
        self._text.close()


def as_proposals(guesses: _native.Guesses) -> Sequence[tuple[int, Proposal]]:
    """What the core returns, as proposals."""
    if guesses is None:
        return ()
    return [
        (request, Proposal(token_ids, classes, parents)) for request, token_ids, classes, parents in guesses
    ]
