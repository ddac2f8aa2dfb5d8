"""Proposers of draft tokens. A draft changes when a token comes, never which.

This room knows token ids only: no model file, no text, no scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from outpace.draft.proposer import Proposer
from outpace.types import Draft, Drafter, DraftRequest, EngineConfig

if TYPE_CHECKING:
    from pathlib import Path

    from outpace.draft.proposer import ComputingProposer
    from outpace.draft.step_costs import StepCosts
    from outpace.types import Backend, DraftHead

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


def create(
    config: EngineConfig,
    costs: StepCosts,
    vocab_size: int,
    folder: Path | None,
    model: tuple[Backend, StepCosts] | None = None,
    head: tuple[DraftHead, float] | None = None,
    *,
    digest: Callable[[], bytes] | None = None,
) -> Drafter:
    """The drafter that `config` asks for, on a backend whose steps cost `costs`.

    `folder`: where the model's text is kept across restarts; None: nowhere. `model`: a smaller model to run
    ahead, and what its steps cost. `head`: a trained head, and the bytes that a row of it reads, over the
    model's. `digest`: SHA-256 of the vocabulary, by which text of another one is told; another thread asks.
    """
    if config.draft == "off":
        return NoDrafter()
    from outpace.draft.controller import DraftController
    from outpace.draft.log import Vocabulary
    from outpace.draft.prediction import EditProposer
    from outpace.draft.store import SharedText
    from outpace.draft.suffix import SharedProposer, SuffixProposer

    proposers: list[Proposer] = [
        SuffixProposer(),
        EditProposer(predicted=True),
        EditProposer(predicted=False),
    ]
    if config.draft_sharing != "off" and config.draft_index_tokens:
        text = SharedText(
            folder if config.draft_persist else None,
            vocabulary=lambda: Vocabulary(vocab_size, digest() if digest is not None else bytes(32)),
            capacity=config.draft_index_tokens,
            sharing=config.draft_sharing,
        )
        proposers.append(SharedProposer(text))
    models: list[ComputingProposer] = []
    if head is not None:
        from outpace.draft.draft_head import HeadProposer

        models.append(HeadProposer(head[0], costs, head[1]))
    if model is not None:
        from outpace.draft.draft_model import ModelProposer

        backend, own = model
        models.append(ModelProposer(backend, own, max_batch_tokens=config.max_batch_tokens))
    return DraftController(proposers, costs, models)
