"""Proposers of draft tokens. A draft changes when a token comes, never which.

This room knows token ids only: no model, no backend, no scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence

from outpace.types import Draft, Drafter, DraftRequest, EngineConfig

__all__ = ["NoDrafter", "create"]


class NoDrafter:
    """Never proposes anything: plain decoding."""

    def propose(
        self,
        requests: Sequence[DraftRequest],
        rooms: Sequence[int],  # noqa: ARG002 - the Protocol's signature
        num_rows: int,  # noqa: ARG002
        num_tree_tokens: int,  # noqa: ARG002
    ) -> Sequence[Draft | None]:
        """Propose nothing."""
        return [None] * len(requests)

    def observe(self, requests: Sequence[DraftRequest], num_rows: int, seconds: float) -> None:
        """Nothing is learned."""

    def finish(self, request: DraftRequest) -> None:
        """Nothing is kept, so nothing is dropped."""

    def close(self) -> None:
        """Nothing is kept."""


def create(config: EngineConfig) -> Drafter:  # noqa: ARG001 - "auto" has no proposer of its own yet
    """The drafter that `config.draft` asks for."""
    return NoDrafter()
