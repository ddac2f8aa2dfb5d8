"""What runs the forward pass and picks tokens: native (C++), torch (the oracle), null (no weights).

A backend knows arrays and a model's spec. It knows neither requests nor text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from outpace.errors import UsageError
from outpace.types import Backend, DraftHead, EngineConfig

if TYPE_CHECKING:
    from outpace.models.checkpoint import Checkpoint

__all__ = ["create", "create_draft_model", "draft_head"]


def create(checkpoint: Checkpoint, config: EngineConfig) -> Backend:
    """Load the model into the backend that `config.backend` names.

    `config` is resolved (see `outpace.config.resolve_engine_config`): nothing in it is 0 for "choose". Raises
    `UnsupportedModelError`, `OutOfMemoryError`, `UsageError` where the backend is not installed.
    """
    if config.draft_head and config.draft != "off" and config.backend != "native":
        raise UsageError(
            f"draft_head: the {config.backend} backend runs none; take the native one, or name no head"
        )
    match config.backend:
        case "native":
            from outpace.backends.native_backend import NativeBackend

            return NativeBackend(checkpoint, config)
        case "torch":
            from outpace.backends.torch_backend import TorchBackend

            return TorchBackend(checkpoint, config)
        case "null":
            from outpace.backends.null_backend import NullBackend

            return NullBackend(checkpoint, config)


def create_draft_model(checkpoint: Checkpoint, config: EngineConfig, model: Backend) -> Backend:
    """Load a smaller model that is to guess for `model`; errors as of `create`.

    Nobody sees its answers: a native one takes four bits a weight, whatever its file has. It runs on the
    model's threads.
    """
    if config.backend != "native":
        return create(checkpoint, config)
    from outpace.backends.native_backend import NativeBackend

    return NativeBackend(
        checkpoint,
        replace(config, weight_format="q4_0"),
        threads_of=model if isinstance(model, NativeBackend) else None,
    )


def draft_head(backend: Backend) -> DraftHead | None:
    """The draft head that was loaded with the model; None where the config names none."""
    head: DraftHead | None = getattr(backend, "draft_head", None)
    return head
