"""Drafts that branch: each token names the one before it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["first_path"]


def first_path(parents: Sequence[int]) -> list[int]:
    """The tokens, as indices, from the root (-1) down, always through the first child."""
    path: list[int] = []
    last = -1
    for node, parent in enumerate(parents):
        if parent == last:
            path.append(node)
            last = node
    return path
