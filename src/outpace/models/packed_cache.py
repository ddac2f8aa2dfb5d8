"""Packed weights on disk: which file holds a model's, whether it may be written, and when it goes.

The core packs a model's matrices into tiles at load; `native/packed_cache.h` keeps the tiles in a file of
Outpace's own cache, so that the next load takes them as they are. The core checks such a file and never
believes a damaged one. This module decides the rest: the file's name (one for each model and weight format),
its key (a digest of all that decides the tiles' bytes), the room for it, and the tidying up.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outpace.config import cache_dir, packed_cache_bytes
from outpace.disk import is_held, remove_unheld, writable_bytes
from outpace.types import WeightFormat

if TYPE_CHECKING:
    from outpace.models.checkpoint import Checkpoint

_log = logging.getLogger(__name__)

MIN_BYTES = 16 << 20
"""Models with fewer bytes of weights are packed sooner than a file is worth."""

_DATA_OFFSET = 2 << 20  # bytes before the tiles, as kPackedData of native/packed_cache.h
_HEADER = struct.Struct("<8sII64sQQQ")  # PackedHeader of native/packed_cache.h
_MAGIC = b"OUTPACKD"
_MAX_PATH_BYTES = 4096


@dataclass(frozen=True, slots=True)
class PackedFile:
    """Where a model's packed weights are, or would be."""

    path: Path
    key: str  # hexadecimal SHA-256; a file with another one is stale
    source: Path  # the model
    write: bool  # whether to write the file where there is none with this key

    def touch(self) -> None:
        """Note that the file was used: the least recently used one goes first."""
        try:
            os.utime(self.path)
        except OSError:  # read-only, or removed meanwhile
            _log.debug("%s: its time of use cannot be noted", self.path)


def packed_folder() -> Path:
    """The folder of packed weights."""
    return cache_dir() / "packed"


def find(
    checkpoint: Checkpoint, weight_format: WeightFormat, layout: int, num_bytes: int
) -> PackedFile | None:
    """The file for a checkpoint whose weights take about `num_bytes` in memory; None where none is kept.

    `layout` is the version of the tiles' layout. Keeps the budget, and makes room for a file to be written.
    """
    budget = packed_cache_bytes()
    if budget == 0 or num_bytes < MIN_BYTES:
        return None
    source = checkpoint.path.resolve()
    folder = packed_folder()
    name = f"{checkpoint.path.stem[:60]}-{_digest(str(source))[:16]}-{weight_format}.packed"
    try:
        key = weights_key(checkpoint, weight_format, layout)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.info("packed weights are not kept: %s", error)
        return None
    path = folder / name
    if _header(path) == (key, str(source)) and _keep_budget(path, _size(path), budget):
        return PackedFile(path, key, source, write=True)  # where it turns out damaged
    return PackedFile(path, key, source, write=_make_room(path, _DATA_OFFSET + num_bytes, budget))


def remove_orphans(own: Path | None = None) -> int:
    """Remove the packed weights of models that are gone, and what killed processes left; the bytes freed.

    And those of the model at `own`, a file or a directory that stays as it is.
    """
    unwanted = None if own is None else own.resolve()
    freed = 0
    for path in _files("*.partial"):
        size = _size(path)
        freed += size if remove_unheld(path) else 0
    for path in _files("*.packed"):
        header = _header(path)
        if header is None or Path(header[1]) == unwanted or not Path(header[1]).exists():
            freed += _remove(path)
    return freed


def weights_key(checkpoint: Checkpoint, weight_format: WeightFormat, layout: int) -> str:
    """A digest of the files' identity and of all in the header that decides how tiles are made.

    Hexadecimal SHA-256. `OSError` where a file cannot be read.
    """
    tensors = checkpoint.tensors.values()
    paths = sorted({tensor.path for tensor in tensors})
    files = [_identity(path) for path in paths]
    table = [(t.name, paths.index(t.path), t.offset, t.num_bytes, t.dtype, t.shape) for t in tensors]
    spec = checkpoint.spec
    order = (spec.num_layers, spec.tied_embeddings)
    return _digest(json.dumps([layout, weight_format, order, files, sorted(table)]))


def _make_room(path: Path, num_bytes: int, budget: int) -> bool:
    """Whether `path` may be written: within the budget, with room on the disk, by nobody else just now."""
    if not os.access(path.parent, os.W_OK):
        _log.info("%s: cannot be written", path.parent)
        return False
    remove_orphans()
    if any(is_held(partial) for partial in _files(f"{path.name}.*.partial")):
        _log.info("%s: another process is writing it", path)
        return False
    if not _keep_budget(path, num_bytes, budget):
        return False
    if num_bytes > (room := writable_bytes(path.parent)):
        _log.info("%s: is not written, there is room on the disk for %d MB only", path, max(0, room) >> 20)
        return False
    return True


def _keep_budget(path: Path, num_bytes: int, budget: int) -> bool:
    """Remove the others' files, the least recently used first, until `num_bytes` in `path` fit beside them.

    False, and `path` is removed too, where they can't: alone, or beside what others write just now.
    """
    written = sum(_size(partial) for partial in _files("*.partial") if is_held(partial))
    others = sorted((_last_use(p), _size(p), p) for p in _files("*.packed") if p != path)
    total = written + sum(size for _, size, _ in others)
    if num_bytes + written > budget:
        _log.info("%s: would take %d MB, the limit is %d MB", path, num_bytes >> 20, budget >> 20)
        _remove(path)
        return False
    for _, size, oldest in others:
        if total + num_bytes <= budget:
            break
        _remove(oldest)
        total -= size
    return True


def _identity(path: Path) -> tuple[str, int, int, int]:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _header(path: Path) -> tuple[str, str] | None:
    """(key, source's path) of a packed file; None where it is none."""
    try:
        with path.open("rb") as file:
            magic, _, path_bytes, key, *_ = _HEADER.unpack(file.read(_HEADER.size))
            source = file.read(min(path_bytes, _MAX_PATH_BYTES))
        if magic == _MAGIC:
            return key.decode("ascii"), os.fsdecode(source)
    except (OSError, ValueError, struct.error):
        pass
    return None


def _files(pattern: str) -> Iterable[Path]:
    return list(packed_folder().glob(pattern))


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _remove(path: Path) -> int:
    """Remove a file; whoever has it mapped keeps what it has. The bytes that this freed."""
    size = _size(path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.info("%s: cannot be removed: %s", path, error)
        return 0
    return size
