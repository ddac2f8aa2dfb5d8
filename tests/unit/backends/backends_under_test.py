"""The backends that the contract suite runs over: adding one is a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine_harness import null_backend
from outpace.config import resolve_engine_config
from outpace.models.checkpoint import open_checkpoint
from outpace.types import Backend

MAX_CONTEXT = 1024
KV_CACHE_BYTES = 16 << 20


def _loaded(name: str, path: Path) -> Backend:
    from outpace import backends

    checkpoint = open_checkpoint(path)
    options = {"backend": name, "kv_cache_bytes": KV_CACHE_BYTES, "num_threads": 2}
    return backends.create(checkpoint, resolve_engine_config(checkpoint.spec, options))


BACKENDS: dict[str, Callable[[Path], Backend]] = {
    "null": lambda _: null_backend(64, vocab_size=512, max_context=MAX_CONTEXT),
    "torch": lambda path: _loaded("torch", path),
    "native": lambda path: _loaded("native", path),
}
"""Each makes a backend of the tiny checkpoint at a path."""
