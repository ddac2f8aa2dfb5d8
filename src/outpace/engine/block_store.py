"""The blocks of one model on disk, by digest: which there are, which go, what may be written.

One thread reads and writes (`disk_tier.py`); any may ask what there is. Nothing here raises for what the
disk does: a block that cannot be read is not there, and where writing fails there is one warning, and another
try after a minute, then after two, and so on up to an hour.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from outpace.disk import remove_unheld, writable_bytes
from outpace.engine.segment import MAX_SLOTS, SUFFIX, Place, Segment

__all__ = ["BlockStore"]

_log = logging.getLogger(__name__)

_MOST_SEGMENTS = 32  # that a budget is divided into: what is evicted at a time
_FIRST_PAUSE = 60.0  # seconds after writing has failed; twice as many each time
_LONGEST_PAUSE = 3600.0
_LONGEST_TURNOVER = 30 * 86400.0  # seconds that a file's time is believed to be past


class BlockStore:
    """Blocks of `block_bytes` under `key` (32 bytes; names all that decides a block's bytes) in `folder`.

    The folders beside it, those of other models, count too: all segments together take at most `budget`
    bytes; other files are let be. Attributes: `folder`, and for metrics `num_written`, `num_damaged`,
    `num_evicted`, in blocks; `num_errors`.
    """

    def __init__(self, folder: Path, key: bytes, block_bytes: int, budget: int) -> None:
        self.block_bytes = block_bytes
        self.num_written = self.num_damaged = self.num_evicted = self.num_errors = 0
        self.folder = folder
        self._key = key
        self._budget = budget
        slots = budget // _MOST_SEGMENTS // block_bytes
        self._num_slots = max(1, min(MAX_SLOTS, slots))
        self._index: dict[bytes, Place] = {}
        self._segments: dict[Path, Segment] = {}
        self._active: Segment | None = None  # the one that is appended to
        self._writes_from = 0.0  # time.monotonic() seconds
        self._pause = _FIRST_PAUSE  # after the next failure
        self._turnover = 0.0  # seconds from a segment's writing to its going, where nobody uses it
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room(0)
        except OSError as error:
            self._stop_writing(error)
        self._scan()

    def __contains__(self, digest: bytes) -> bool:
        """Whether the block is there, as far as is known."""
        return digest in self._index

    @property
    def num_blocks(self) -> int:
        """Blocks that are there."""
        return len(self._index)

    @property
    def can_write(self) -> bool:
        """False for a time after writing has failed, and once closed."""
        return time.monotonic() >= self._writes_from

    def find(self, digests: Sequence[bytes], start: int, limit: int) -> int:
        """How many blocks from `start` on, and before `limit`, are there one after the other."""
        at = start
        while at < limit and digests[at] in self._index:
            at += 1
        return at - start

    def touch(self, digests: Iterable[bytes], pinned: float = 0.0) -> None:
        """Note that these blocks were used, where they are there; and that they are to go last for a time.

        A segment that was used stays for as long again as one that was only written, and for `pinned` seconds
        more: until these are over, none that is not pinned stays longer.
        """
        places = (self._index.get(digest) for digest in digests)
        for segment in {place.segment for place in places if place is not None}:
            segment.touch(self._turnover + pinned)

    # --- reading ------------------------------------------------------------------------------------

    def read(self, digests: Sequence[bytes], blocks: Sequence[NDArray[np.uint8]]) -> int:
        """Read blocks to where they belong; how many came, from the first on. The others hold anything."""
        done = 0
        while done < len(digests):
            places = self._places(digests[done:])
            if not places:
                break
            segment = places[0].segment
            try:
                got = segment.read(places, blocks[done : done + len(places)])
            except OSError as error:
                _log.info("%s: a prefix is not read: %s", segment.path, error)
                if error.errno in (errno.ENOENT, errno.ESTALE):  # else it is sound, for all that is known
                    self._forget(segment)
                break
            segment.touch(self._turnover)
            done += got
            if got < len(places):
                self._drop(digests[done], places[got])
                break
        return done

    def _places(self, digests: Sequence[bytes]) -> list[Place]:
        """The places of the first blocks, as far as one segment has them."""
        places: list[Place] = []
        for digest in digests:
            place = self._index.get(digest)
            if place is None or (places and place.segment is not places[0].segment):
                break
            places.append(place)
        return places

    def _drop(self, digest: bytes, place: Place) -> None:
        _log.warning("%s: a block is damaged; it is computed anew", place.segment.path)
        self.num_damaged += 1
        self._index.pop(digest, None)
        place.segment.forget(place.slot)

    # --- writing ------------------------------------------------------------------------------------

    def write(self, digests: Sequence[bytes], blocks: NDArray[np.uint8]) -> None:
        """Write `blocks` [n, bytes of a block], none of which is there yet."""
        at = 0
        try:
            while at < len(digests) and self.can_write:
                segment = self._appendable()
                if segment is None:
                    return
                end = min(len(digests), at + segment.room)
                places = segment.append(digests[at:end], blocks[at:end])
                self._index.update(zip(digests[at:end], places, strict=True))
                self.num_written += end - at
                self._pause = _FIRST_PAUSE
                at = end
        except OSError as error:
            self._stop_writing(error)

    def _appendable(self) -> Segment | None:
        """A segment with room; None where the disk or the budget has none."""
        active = self._active
        if active is not None and active.is_gone:
            active.close()
            self._forget(active)
        elif active is not None and active.room:
            return active
        elif active is not None:
            active.close()
        self._active = None
        num_bytes = Segment.size(self.block_bytes, self._num_slots)
        if not self._make_room(num_bytes):
            self._stop_writing(OSError(f"there is no room for {num_bytes >> 20} MB more"))
            return None
        self._active = Segment.create(self.folder, self._key, self.block_bytes, self._num_slots)
        self._segments[self._active.path] = self._active
        return self._active

    def _stop_writing(self, error: OSError) -> None:
        """Do not try again for a time. What is appended to stays so: an empty segment takes room too."""
        level = logging.WARNING if self._pause == _FIRST_PAUSE else logging.INFO
        _log.log(
            level, "%s: prefixes are not written to disk for %.0f s: %s", self.folder, self._pause, error
        )
        self.num_errors += 1
        self._writes_from = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    # --- what there is, and what goes ---------------------------------------------------------------

    def _scan(self) -> None:
        """Take in what earlier processes left; go on with the newest segment that has room."""
        for _, _, path in _by_use(self.folder.glob("*" + SUFFIX)):
            try:
                opened = Segment.open(path, self._key, self.block_bytes)
            except OSError:  # removed just now
                continue
            if opened is None:
                continue
            segment, places = opened
            self._segments[path] = segment
            self._index.update(places)
        for segment in reversed(self._segments.values()) if self.can_write else ():
            places = segment.lock()
            if places is not None:
                self._index.update(places)  # somebody may have appended meanwhile, and gone
                if segment.room:
                    self._active = segment
                    return
                segment.close()

    def _make_room(self, num_bytes: int) -> bool:
        """Remove the segments that were not used for longest until so much more fits; whether it does."""
        found = _by_use(self.folder.parent.glob("*/*" + SUFFIX))
        total = sum(size for _, size, _ in found)
        if found:
            self._turnover = min(max(0.0, time.time() - found[0][0]), _LONGEST_TURNOVER)
        limit = min(self._budget, total + writable_bytes(self.folder)) if num_bytes else self._budget
        if num_bytes > limit:
            return False
        for _, size, path in found:
            if total + num_bytes <= limit:
                break
            if remove_unheld(path):
                total -= size
                segment = self._segments.get(path)
                if segment is not None:
                    self.num_evicted += len(segment.digests)
                    self._forget(segment)
        return total + num_bytes <= limit

    def _forget(self, segment: Segment) -> None:
        self._segments.pop(segment.path, None)
        for digest in segment.digests:
            place = self._index.get(digest)
            if place is not None and place.segment is segment:
                del self._index[digest]

    def close(self) -> None:
        """Give the lock back, and write nothing more. Safe to call twice."""
        if self._active is not None:
            self._active.close()
        self._active = None
        self._writes_from = math.inf


def _by_use(paths: Iterable[Path]) -> list[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of the files that are there, the least recently used first."""
    found: list[tuple[float, int, Path]] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # removed just now
            continue
        found.append((status.st_mtime, status.st_size, path))
    return sorted(found)
