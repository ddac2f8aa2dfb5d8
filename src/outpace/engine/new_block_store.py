"""Assembles a model's store of KV blocks: where it is, and the key of all that decides a block's bytes."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from outpace import _native
from outpace.config import prefixes_dir
from outpace.draft.log import model_folder
from outpace.models.packed_cache import weights_key
from outpace.types import BLOCK_SIZE, Backend, EngineConfig

if TYPE_CHECKING:
    from outpace.engine.block_store import BlockStore
    from outpace.models.checkpoint import Checkpoint

__all__ = ["new_block_store"]

_log = logging.getLogger(__name__)


def new_block_store(checkpoint: Checkpoint, backend: Backend, config: EngineConfig) -> BlockStore | None:
    """The store that `config` asks for; None where it asks for none, or where none can be kept."""
    if config.prefix_cache_disk_bytes == 0 or not config.prefix_cache:
        return None
    memory = backend.kv_blocks
    if memory is None:
        _log.info("the %s backend keeps no prefixes on disk", config.backend)
        return None
    from outpace.engine.block_store import BlockStore

    block_bytes = memory.shape[1]
    try:
        key = _key(checkpoint, backend, config, block_bytes)
    except OSError as error:
        _log.warning("prefixes are not kept on disk: %s", error)
        return None
    folder = model_folder(prefixes_dir(), checkpoint.path)
    return BlockStore(folder, key, block_bytes, config.prefix_cache_disk_bytes)


def _key(checkpoint: Checkpoint, backend: Backend, config: EngineConfig, block_bytes: int) -> bytes:
    """SHA-256 of all that decides a block's bytes: the weights, the model, the layout, and this very build.

    All tiers, threads and schedules give the same bits, so they are not in it; another version may not.
    """
    description = backend.description
    build = hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()
    weights = weights_key(checkpoint, config.weight_format, _native.packed_layout)
    layout = (description["backend"], description["kv_format"], config.prefill, BLOCK_SIZE, block_bytes)
    return hashlib.sha256(json.dumps([build, weights, layout, asdict(checkpoint.spec)]).encode()).digest()
