"""Requests that begin alike and come together: one computes the common blocks, the others wait for them."""

from __future__ import annotations

from collections.abc import Sequence

from outpace.engine.request import Request
from outpace.types import BLOCK_SIZE

__all__ = ["is_being_computed"]


def is_being_computed(request: Request, prefilling: Sequence[Request]) -> bool:
    """Whether one of `prefilling` computes the next of a waiting request's prompt blocks.

    It is then remembered as the request's `leader`, until all that both have in common is in the prefix
    cache, or the leader has ended or lost its blocks.
    """
    if request.leader is not None:
        leader, version, count = request.leader
        if leader.block_version == version and leader.num_registered_blocks < count:
            return True
        request.leader = None
    limit = (request.num_tokens - 1) // BLOCK_SIZE  # the last token is always computed
    if limit == 0:
        return False
    digests = request.digests(limit)
    for other in prefilling:
        first = other.num_registered_blocks
        count = min(limit, other.num_tokens // BLOCK_SIZE)
        theirs = other.digests(count)
        if first < count and digests[first] == theirs[first]:
            while digests[count - 1] != theirs[count - 1]:
                count -= 1
            request.leader = other, other.block_version, count
            return True
    return False
