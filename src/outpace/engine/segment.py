"""One file of KV blocks on disk: a table at its head, the blocks behind it in slots of one size.

    byte 0      header: magic, version, slots, bytes of a block, key, CRC-32 of all that; little endian
    byte 4096   an entry for each slot: the block's digest, its checksum, and a check of the entry
    then, from the next multiple of 4096 on, the slots

The key names all that decides a block's bytes: the model, the layout, the build. A file has its full length
from the start, as a sparse one, so that what it may take is known. The process that has the file's lock fills
the slots in their order, each block before its entry: what a killed process leaves is whole. What is damaged
later fails its check and is not believed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import time
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from outpace import _native

__all__ = ["MAX_SLOTS", "SUFFIX", "Place", "Segment"]

SUFFIX = ".blocks"
MAX_SLOTS = 4096

_MAGIC = b"OUTKVBLK"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQ32sI")
_ENTRY = struct.Struct("<16sQ8s")
_TABLE = 4096  # where it begins
_CRC = struct.Struct("<I")
_READ_BLOCKS = 32  # at a time
_TOUCH_EVERY = 60.0  # seconds

Block = NDArray[np.uint8]  # [bytes of a block]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block is, and the checksum that it must have."""

    segment: Segment
    slot: int
    checksum: int


class Segment:
    """An open or a closed segment; `digests` are those of its sound entries. `OSError` where the disk fails.

    Only a segment with a lock (`create`, `lock`) can be appended to.
    """

    def __init__(self, path: Path, key: bytes, block_bytes: int, num_slots: int) -> None:
        self.path = path
        self.block_bytes = block_bytes
        self.digests: list[bytes] = []
        self._key = key
        self._num_slots = num_slots
        self._next = 0  # slot
        self._data = -(-(_TABLE + num_slots * _ENTRY.size) // 4096) * 4096
        self._file: int | None = None  # descriptor, with the lock
        self._goes_at = 0.0  # seconds since the epoch, as the file's time

    @property
    def num_bytes(self) -> int:
        """Bytes of the file."""
        return self._data + self._num_slots * self.block_bytes

    @property
    def room(self) -> int:
        """Slots that can still be filled by this process."""
        return 0 if self._file is None else self._num_slots - self._next

    @staticmethod
    def size(block_bytes: int, num_slots: int) -> int:
        """Bytes of the file of a segment."""
        return Segment(Path(), b"", block_bytes, num_slots).num_bytes

    @classmethod
    def create(cls, folder: Path, key: bytes, block_bytes: int, num_slots: int) -> Segment:
        """A new, empty segment with its lock."""
        segment = cls(folder / (secrets.token_hex(16) + SUFFIX), key, block_bytes, num_slots)
        file = os.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        segment._file = file
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # somebody may just look whether it is held
            head = _HEADER.pack(_MAGIC, _VERSION, num_slots, block_bytes, key, 0)[: -_CRC.size]
            os.ftruncate(file, segment.num_bytes)
            _write(file, head + _CRC.pack(zlib.crc32(head)), 0)
        except OSError:
            segment.close()
            with suppress(OSError):
                segment.path.unlink()
            raise
        return segment

    @classmethod
    def open(
        cls, path: Path, key: bytes, block_bytes: int
    ) -> tuple[Segment, list[tuple[bytes, Place]]] | None:
        """The segment in a file, and its sound entries; None where it is of another key, or none at all."""
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
            if (
                len(head) < _HEADER.size
                or zlib.crc32(head[: -_CRC.size]) != _CRC.unpack(head[-_CRC.size :])[0]
            ):
                return None
            magic, version, num_slots, *rest, _ = _HEADER.unpack(head)
            if (magic, version, *rest) != (_MAGIC, _VERSION, block_bytes, key) or num_slots > MAX_SLOTS:
                return None
            file.seek(_TABLE)
            table = file.read(num_slots * _ENTRY.size)
            used_at = os.fstat(file.fileno()).st_mtime
        segment = cls(path, key, block_bytes, num_slots)
        segment._goes_at = used_at
        return segment, segment._parse(table)

    def _parse(self, table: bytes) -> list[tuple[bytes, Place]]:
        found: list[tuple[bytes, Place]] = []
        for slot in range(len(table) // _ENTRY.size):
            digest, checksum, check = _ENTRY.unpack_from(table, slot * _ENTRY.size)
            if check == self._check(slot, digest, checksum):
                found.append((digest, Place(self, slot, checksum)))
                self._next = slot + 1
        self.digests = [digest for digest, _ in found]
        return found

    def _check(self, slot: int, digest: bytes, checksum: int) -> bytes:
        return blake2b(b"%d" % slot + digest + b"%d" % checksum, digest_size=8, key=self._key).digest()

    def lock(self) -> list[tuple[bytes, Place]] | None:
        """Take the lock, to append, and read the entries again; None where that is not possible."""
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(file)
            if status.st_size != self.num_bytes or status.st_nlink == 0:
                raise BlockingIOError
            table = os.pread(file, self._num_slots * _ENTRY.size, _TABLE)
        except OSError:
            os.close(file)
            return None
        self._file = file
        return self._parse(table)

    def append(self, digests: Sequence[bytes], blocks: NDArray[np.uint8]) -> list[Place]:
        """Fill the next slots with `blocks` [n, bytes of a block], at most `room` of them."""
        assert self._file is not None
        places = [Place(self, self._next + i, _native.checksum(block)) for i, block in enumerate(blocks)]
        _write(self._file, blocks.data.cast("B"), self._data + self._next * self.block_bytes)
        entries = b"".join(
            _ENTRY.pack(digest, place.checksum, self._check(place.slot, digest, place.checksum))
            for digest, place in zip(digests, places, strict=True)
        )
        _write(self._file, entries, _TABLE + self._next * _ENTRY.size)
        self._next += len(places)
        self.digests += digests
        if self._goes_at > time.time():  # writing has set the file's time
            self._set_time()
        return places

    def read(self, places: Sequence[Place], blocks: Sequence[Block]) -> int:
        """Read blocks to where they belong; how many are sound, before the first that is not."""
        done = 0
        with self._reading() as file:
            while done < len(places):
                count = _run_length(places[done : done + _READ_BLOCKS])
                at = self._data + places[done].slot * self.block_bytes
                buffers = [block.data for block in blocks[done : done + count]]
                got = os.preadv(file, buffers, at) // self.block_bytes
                for _ in range(got):
                    if _native.checksum(blocks[done]) != places[done].checksum:
                        return done
                    done += 1
                if got < count:
                    break
        return done

    @contextmanager
    def _reading(self) -> Generator[int, None, None]:
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield file
        finally:
            os.close(file)

    def forget(self, slot: int) -> None:
        """Take a damaged block's entry out of the file."""
        with suppress(OSError), self.path.open("r+b") as file:
            file.seek(_TABLE + slot * _ENTRY.size)
            file.write(bytes(_ENTRY.size))

    def touch(self, seconds: float) -> None:
        """Note that the segment was used: it counts as used so many seconds from now.

        The file's time is what all processes go by: the segment that was used least recently goes first.
        """
        goes_at = time.time() + seconds
        if goes_at > self._goes_at + _TOUCH_EVERY:
            self._goes_at = goes_at
            self._set_time()

    def _set_time(self) -> None:
        with suppress(OSError):
            os.utime(self.path, (self._goes_at, self._goes_at))

    @property
    def is_gone(self) -> bool:
        """Whether somebody has removed the file."""
        return os.fstat(self._file).st_nlink == 0 if self._file is not None else not self.path.exists()

    def close(self) -> None:
        """Give the lock back. Safe to call twice."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _run_length(places: Sequence[Place]) -> int:
    """How many of the places, from the first on, lie side by side."""
    count = 1
    while count < len(places) and places[count].slot == places[count - 1].slot + 1:
        count += 1
    return count


def _write(file: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        if written == 0:
            raise OSError("nothing more can be written")
        view = view[written:]
        offset += written
