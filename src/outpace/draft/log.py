"""One scope's text on disk: an append-only log of token ids that survives whatever ends the process.

    header   magic, 8 bytes; version and vocabulary size, 4 bytes each; SHA-256 of the vocabulary
    record   number of tokens, CRC-32 of them, 4 bytes each; the tokens, int32; all little endian

Reading stops at the first record that is cut off or damaged. The process that has the file's lock appends to
it and cuts off such an end; others only read.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import struct
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from outpace.types import Int32Array

__all__ = ["TokenLog", "Vocabulary", "model_folder", "newest", "remove_orphans", "tidy"]

_log = logging.getLogger(__name__)

_MAGIC = b"OUTDRAFT"
_VERSION = 2
_HEADER = struct.Struct("<8sII32s")
_RECORD = struct.Struct("<II")
_SUFFIX = ".tokens"
_SOURCE = "model.txt"
_REST_EVERY = 64  # records, after which others may have the interpreter
_REST = 1e-4  # seconds


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What makes a token id mean what it does: ids are below `size`; `digest` is one of all tokens' texts."""

    size: int
    digest: bytes = bytes(32)

    @property
    def header(self) -> bytes:
        """What a log of its tokens begins with."""
        return _HEADER.pack(_MAGIC, _VERSION, self.size, self.digest)


class TokenLog:
    """The log at `path`, of a vocabulary's tokens; of twice `capacity` tokens the newer half is kept.

    Nothing here raises for what the disk does: the log is then read-only, or empty.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary, capacity: int) -> None:
        self._path = path
        self._vocabulary = vocabulary
        self._capacity = capacity
        self._file: int | None = None  # descriptor, with the lock
        self._is_new = False  # there was no file; what is appended first makes one
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens in the file, as far as this process writes it; else 0."""
        return self._num_tokens if self._file is not None else 0

    def read(self) -> list[Int32Array]:
        """Lock the log if nobody else has, and read its records: the newest `capacity` tokens."""
        return self._open(make=False)

    def _open(self, *, make: bool) -> list[Int32Array]:
        self._is_new = False
        try:
            if make:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = _locked(self._path, make=make)
            if self._file is None:
                _log.info("%s: another process writes it; it is only read here", self._path)
            data = self._path.read_bytes()
        except FileNotFoundError:
            self.close()
            self._is_new = not make
            return []
        except OSError as error:
            _log.info("%s: earlier text is not read: %s", self._path, error)
            return []
        records, length = self._parse(data)
        self._num_tokens = sum(len(record) for record in records)
        if self._file is not None and length != len(data):
            if length == 0:
                _log.info("%s: is of another vocabulary or version; it is begun anew", self._path)
            else:
                _log.warning("%s: %d bytes at its end are damaged: cut off", self._path, len(data) - length)
            with suppress(OSError):
                os.ftruncate(self._file, length)
        return newest(records, self._capacity)

    def append(self, records: Sequence[Int32Array]) -> None:
        """Write records to the end, if this process has the lock."""
        if self._is_new:
            self._open(make=True)
        if self._file is None:
            return
        data = b"".join(_encoded(record) for record in records)
        start = 0
        try:
            start = os.lseek(self._file, 0, os.SEEK_END)
            if start == 0:
                data = self._vocabulary.header + data
            written = os.write(self._file, data)
            if written != len(data):
                raise OSError(f"{written} of {len(data)} bytes written")
        except OSError as error:
            _log.warning("%s: text is no longer kept on disk: %s", self._path, error)
            with suppress(OSError):
                os.ftruncate(self._file, start)
            self.close()
            return
        self._num_tokens += sum(len(record) for record in records)
        if self._num_tokens > 2 * self._capacity:
            self.cut(self._capacity)

    def cut(self, num_tokens: int) -> None:
        """Keep the newest tokens alone, in a new file that takes the old one's place."""
        if self._file is None:
            return
        partial = self._path.with_suffix(".partial")
        file: int | None = None
        try:
            records = newest(self._parse(self._path.read_bytes())[0], num_tokens)
            file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = self._vocabulary.header + b"".join(_encoded(record) for record in records)
            if os.write(file, data) != len(data):
                raise OSError("the disk is full")
            partial.replace(self._path)
        except OSError as error:
            _log.warning("%s: text is no longer kept on disk: %s", self._path, error)
            if file is not None:
                os.close(file)
            with suppress(OSError):
                partial.unlink()
            self.close()
            return
        self.close()
        self._file = file
        self._num_tokens = sum(len(record) for record in records)

    def close(self) -> None:
        """Give the lock back. Safe to call twice."""
        file, self._file, self._is_new = self._file, None, False
        if file is not None:
            with suppress(OSError):
                os.close(file)

    def _parse(self, data: bytes) -> tuple[list[Int32Array], int]:
        """The sound records, and where the last of them ends; a foreign file has none and ends at 0."""
        if not data.startswith(self._vocabulary.header):
            return [], 0
        records: list[Int32Array] = []
        at = _HEADER.size
        while at + _RECORD.size <= len(data):
            count, checksum = _RECORD.unpack_from(data, at)
            end = at + _RECORD.size + 4 * count
            body = data[at + _RECORD.size : end]
            if end > len(data) or zlib.crc32(body) != checksum:
                break
            record = np.frombuffer(body, "<i4").astype(np.int32)
            if count and (record.min() < 0 or record.max() >= self._vocabulary.size):
                break
            records.append(record)
            at = end
            if len(records) % _REST_EVERY == 0:
                time.sleep(_REST)  # an engine's step may wait for the interpreter
        return records, at


def newest(records: Sequence[Int32Array], num_tokens: int) -> list[Int32Array]:
    """The records' newest tokens, so many at most; of the oldest one that is left, perhaps its end alone."""
    kept: list[Int32Array] = []
    for record in reversed(records):
        if num_tokens <= 0:
            break
        kept.append(record[-num_tokens:])
        num_tokens -= len(record)
    return kept[::-1]


def _locked(path: Path, *, make: bool) -> int | None:
    """A descriptor of the file, with `make` of a new one, with its lock; None where another has that."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if make else 0), 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        except FileNotFoundError:
            pass  # removed or replaced between opening and locking it
        except OSError:
            os.close(file)
            return None
        os.close(file)


def _encoded(record: Int32Array) -> bytes:
    body = record.astype("<i4").tobytes()
    return _RECORD.pack(len(record), zlib.crc32(body)) + body


def model_folder(folder: Path, model: Path) -> Path:
    """The folder of a model's logs, in the folder of all models'; it notes whose it is.

    Where it cannot be made, nothing is kept in it either.
    """
    source = str(model.resolve())
    own = folder / hashlib.sha256(source.encode()).hexdigest()[:32]
    with suppress(OSError):
        own.mkdir(parents=True, exist_ok=True, mode=0o700)
        (own / _SOURCE).write_text(source)
    return own


def tidy(folder: Path, most_tokens: int) -> int:
    """Remove the logs that were not written for longest until the folder holds at most so many tokens.

    Empty ones go in any case, those that a process writes stay. Returns the tokens that are still too many.
    """
    found: list[tuple[float, int, Path]] = []
    for path in folder.glob("*" + _SUFFIX):
        with suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    found.sort()
    excess = sum(size for _, size, _ in found) - 4 * most_tokens
    for number, (_, size, path) in enumerate(found, 1):
        too_much = excess > 0 and number < len(found)  # the newest one stays
        if (too_much or size == 0) and _removed(path, size):
            excess -= size
    return max(0, -(-excess // 4))


def _removed(path: Path, num_bytes: int) -> bool:
    """Remove a log of so many bytes that no process writes; whether it could be."""
    with suppress(OSError):
        file = _locked(path, make=False)
        if file is None:
            return False
        try:
            if os.fstat(file).st_size == num_bytes:  # nobody has written meanwhile
                path.unlink()
                return True
        finally:
            os.close(file)
    return False


def remove_orphans(folder: Path, own: Path | None = None) -> int:
    """Remove the logs of models that are gone, from the folder of all models' logs; the bytes freed.

    And those of the model at `own`, a file or a directory that stays as it is.
    """
    unwanted = None if own is None else own.resolve()
    freed = 0
    for note in folder.glob(f"*/{_SOURCE}"):
        with suppress(OSError):
            source = Path(note.read_text())
            if source == unwanted or not source.exists():
                freed += sum(path.stat().st_size for path in note.parent.iterdir())
                shutil.rmtree(note.parent)
    return freed
