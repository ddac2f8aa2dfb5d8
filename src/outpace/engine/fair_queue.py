"""The queue of waiting requests: fair between clients, in order within each.

Fair queueing by prompt tokens (Demers, Keshav and Shenker, 1989). A request's tag is the virtual time when
its client's work would be done if all clients were served at once, and the lowest tag goes first. So one
client's fifty requests keep another's one waiting for about one of them, and whoever waits is served: those
who come later get later tags.

A lane weighs its requests: one of "priority" counts as a quarter of its tokens, one of "flex" as four times
as many. So lanes pass each other, and nobody starves. The prompts that are read in one step share its rows by
the same weights.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator

from outpace.engine.request import Request
from outpace.types import Lane

__all__ = ["FairQueue", "party_of", "share_rows"]

_FEW_TAGS = 64  # of clients: so many are not looked through for those of the past
_WEIGHTS: dict[Lane, float] = {"priority": 4.0, "default": 1.0, "flex": 0.25}


class FairQueue:
    """Waiting requests, next one first. A client is a scope of `DraftHints`."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, Request]] = []  # sorted; the number keeps equal tags in order
        self._last_tags: dict[tuple[str, Lane], float] = {}  # client and lane -> of its latest request
        self._most_tags = _FEW_TAGS  # before those of the past are dropped
        self._now = 0.0  # virtual time: the highest tag that has left
        self._num_added = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        """In the order in which they would go."""
        return (request for _, _, request in list(self._queue))

    def add(self, request: Request) -> None:
        """Queue a new request, or one that was taken before, which keeps its place."""
        if request.queue_place is None:
            lane = request.hints.lane
            client = party_of(request)
            if not self._queue:  # nobody is owed anything
                self._last_tags.clear()
            tag = max(self._now, self._last_tags.get(client, 0.0)) + request.num_tokens / _WEIGHTS[lane]
            self._last_tags[client] = tag
            if len(self._last_tags) > self._most_tags:
                self._last_tags = {each: last for each, last in self._last_tags.items() if last > self._now}
                self._most_tags = max(_FEW_TAGS, 2 * len(self._last_tags))
            self._num_added += 1
            request.queue_place = tag, self._num_added
        insort(self._queue, (*request.queue_place, request))

    def take(self, request: Request) -> None:
        """Remove a request that begins to run."""
        self.remove(request)
        assert request.queue_place is not None
        self._now = max(self._now, request.queue_place[0])

    def remove(self, request: Request) -> None:
        """Remove a request that has ended, if it waits."""
        for index, (_, _, other) in enumerate(self._queue):
            if other is request:
                del self._queue[index]
                return


def party_of(request: Request) -> tuple[str, Lane]:
    """Whose share of a step a request takes: its client's, in its lane."""
    return request.hints.scope, request.hints.lane


def share_rows(requests: list[Request], budget: int) -> list[int]:
    """Each request's rows of `budget`: a client's share is by the weight of its lane.

    A share goes to the client's requests in their order; what it does not need is shared among the others.
    """
    missing = [request.num_tokens - request.num_computed_tokens for request in requests]
    wanted: dict[tuple[str, Lane], int] = {}
    for request, rows in zip(requests, missing, strict=True):
        wanted[party_of(request)] = wanted.get(party_of(request), 0) + rows
    shares: dict[tuple[str, Lane], int] = {}
    weights = sum(_WEIGHTS[lane] for _, lane in wanted)
    for party in sorted(wanted, key=lambda party: wanted[party] / _WEIGHTS[party[1]]):
        weight = _WEIGHTS[party[1]]
        # Rounded up, so that no budget is too small to reach somebody.
        shares[party] = min(wanted[party], math.ceil(budget * weight / weights))
        budget -= shares[party]
        weights -= weight
    given: list[int] = []
    for request, most in zip(requests, missing, strict=True):
        given.append(min(most, shares[party_of(request)]))
        shares[party_of(request)] -= given[-1]
    return given
