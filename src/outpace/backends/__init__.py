"""What runs the forward pass and picks tokens: native (C++), torch (the oracle), null (no weights).

A backend knows arrays and a model's spec. It knows neither requests nor text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outpace.errors import UsageError
from outpace.types import Backend, DraftHead, EngineConfig

if TYPE_CHECKING:
    from outpace.models.checkpoint import Checkpoint

__all__ = ["create", "draft_head"]


def create(checkpoint: Checkpoint, config: EngineConfig, *, threads_of: Backend | None = None) -> Backend:
    """Load the model into the backend that `config.backend` names; a native one may share another's threads.

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

            shares = threads_of if isinstance(threads_of, NativeBackend) else None
            return NativeBackend(checkpoint, config, threads_of=shares)
        case "torch":
            from outpace.backends.torch_backend import TorchBackend

            return TorchBackend(checkpoint, config)
        case "null":
            from outpace.backends.null_backend import NullBackend

            return NullBackend(checkpoint, config)


def draft_head(backend: Backend) -> DraftHead | None:
    """The draft head that was loaded with the model; None where the config names none."""
    head: DraftHead | None = getattr(backend, "draft_head", None)
    return head
