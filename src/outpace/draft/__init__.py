"""Proposers of draft tokens. A draft changes when a token comes, never which.

This room knows token ids only: no model, no backend, no scheduler.
"""

from __future__ import annotations

from outpace.types import Draft, Drafter, EngineConfig, Int32Array

__all__ = ["NoDrafter", "create"]


class NoDrafter:
    """Never proposes anything: plain decoding."""

    def propose(self, request_id: str, token_ids: Int32Array, max_tokens: int) -> Draft | None:  # noqa: ARG002 - the Protocol's signature
        """Propose nothing."""
        return None

    def forget(self, request_id: str) -> None:
        """Nothing is kept, so nothing is dropped."""


def create(config: EngineConfig) -> Drafter:  # noqa: ARG001 - "auto" has no proposer of its own yet
    """The drafter that `config.draft` asks for."""
    return NoDrafter()
