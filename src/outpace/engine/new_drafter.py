"""Assembles a model's drafter: what steps cost, where text is kept, the head or the model that runs ahead."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from outpace import backends, draft
from outpace.config import drafts_dir, kv_bytes_per_block, step_costs_dir
from outpace.cores import processor_name
from outpace.draft.log import model_folder
from outpace.engine.calibration import step_costs
from outpace.errors import UsageError
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.models.hub import resolve
from outpace.types import BLOCK_SIZE, Backend, Drafter, EngineConfig

if TYPE_CHECKING:
    from outpace.draft.step_costs import StepCosts
    from outpace.text.tokenizer import Tokenizer

__all__ = ["new_drafter"]

_log = logging.getLogger(__name__)

_MOST_REQUESTS = 16
"""Requests for which the draft model has memory; more go without it."""


def new_drafter(
    checkpoint: Checkpoint,
    backend: Backend,
    tokenizer: Tokenizer,
    config: EngineConfig,
    *,
    measure: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Drafter:
    """The drafter that `config` asks for. The backend must be idle.

    `measure`: take the time to see what steps cost, where that is not known yet; `progress` is called with
    (bytes done, bytes in all) while a draft model is brought. Raises `UsageError` for a draft model of
    another vocabulary, and as `LLM` does for one that cannot be loaded.
    """
    if config.draft == "off":
        return draft.NoDrafter()
    costs = step_costs(backend, step_costs_dir(), processor_name(), measure=measure)
    folder = model_folder(drafts_dir(), checkpoint.path) if config.draft_persist else None
    model: tuple[Backend, StepCosts] | None = None
    if config.draft_model:
        from outpace.draft.draft_model import num_common_tokens

        smaller = _load(backend, tokenizer, config, progress)
        smaller_costs = step_costs(
            smaller,
            step_costs_dir(),
            processor_name(),
            measure=measure,
            num_output_tokens=num_common_tokens(smaller.spec.vocab_size),
        )
        if smaller.weight_bytes >= backend.weight_bytes:
            _log.warning(
                "the draft model %s is no smaller than the model: it will not pay", config.draft_model
            )
        model = smaller, smaller_costs
    head = backends.draft_head(backend)
    own = None if head is None else (head, head.weight_bytes / backend.weight_bytes)
    vocab_size = backend.spec.vocab_size
    return draft.create(config, costs, vocab_size, folder, model, own, digest=tokenizer.digest)


def _load(
    backend: Backend,
    tokenizer: Tokenizer,
    config: EngineConfig,
    progress: Callable[[int, int], None] | None,
) -> Backend:
    """The draft model, on the threads of the model that it runs ahead of."""
    from outpace.draft.draft_model import CONTEXT

    checkpoint = open_checkpoint(resolve(config.draft_model, progress=progress))
    _check_vocabulary(checkpoint, tokenizer)
    blocks = CONTEXT // BLOCK_SIZE * min(config.max_num_seqs, _MOST_REQUESTS)
    own = replace(
        config,
        max_context=min(CONTEXT, checkpoint.spec.max_context),
        kv_cache_bytes=blocks * kv_bytes_per_block(checkpoint.spec, config.kv_format),
        max_tree_tokens=0,
        draft_head="",
        prefill="exact",  # its guesses are one row each, for which rounding gains nothing
    )
    return backends.create_draft_model(checkpoint, own, backend)


def _check_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """A token must mean the same to both models; what only one of them has at the end is padding."""
    from outpace.text.tokenizer import Tokenizer

    other = Tokenizer.from_checkpoint(checkpoint, lazy=True)
    for token_id in range(min(tokenizer.vocab_size, other.vocab_size)):
        ours, theirs = tokenizer.token_text(token_id), other.token_text(token_id)
        if ours != theirs and ours and theirs:
            raise UsageError(
                f"draft_model: {checkpoint.path} has another vocabulary: token {token_id} is {theirs!a}, "
                f"and {ours!a} in the model; take a smaller model of the same family"
            )
