"""The second tier of the prefix cache: blocks go to disk in the background, and come back before a prefill.

One thread does all reading and writing, and reads come first. The engine's thread only hands lists over: a
step waits for none of it.

The thread holds no blocks while it writes: it copies a block out of the KV cache, and then looks whether the
prefix cache still has it there. A block that was evicted meanwhile is not written. A load has a hold of its
own on the blocks that it fills, until the scheduler takes it back (`take_finished`), so they outlive a
request that ends before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.engine.block_store import BlockStore
from outpace.engine.prefix_cache import PrefixCache

__all__ = ["DiskTier", "Load"]

_log = logging.getLogger(__name__)

_MIN_BLOCKS = 4

_SLICE = 16  # blocks that are written at a time, or as many as these bytes hold
_SLICE_BYTES = 8 << 20
_REST = 4.0  # times what a slice took: how long the thread leaves processor and memory to the steps
_MOST_CHAINS = 1024  # that wait to be written; the oldest ones go
_CLOSE_SECONDS = 5.0  # for what is not written when the engine ends


@dataclass(slots=True, eq=False)
class Load:
    """Blocks on their way from disk: `digests[i]` into block `block_ids[i]`."""

    digests: list[bytes]
    block_ids: list[int]
    num_loaded: int = 0  # from the first on, once it is finished


class DiskTier:
    """Reads and writes a store for the KV cache in `memory`, [num_blocks, bytes of a block].

    What is kept beside a block in `states`, [num_blocks, bytes], becomes zeros where the block is read. The
    methods are called from one thread, the engine's. Attributes: `min_blocks`, how many full blocks of prompt
    and output make a request worth writing; `num_loads`, those that were not taken back yet; `load_seconds`,
    what all of them took.
    """

    def __init__(
        self,
        store: BlockStore,
        cache: PrefixCache,
        memory: NDArray[np.uint8],
        states: NDArray[np.uint8] | None = None,
    ) -> None:
        self.store = store
        self.min_blocks = _MIN_BLOCKS
        self.load_seconds = 0.0
        self._cache = cache
        self._memory: NDArray[np.uint8] | None = memory
        self._states = states  # nobody else touches those of a block that is being read
        self._slice = max(1, min(_SLICE, _SLICE_BYTES // memory.shape[1]))
        self._copies = np.empty((self._slice, memory.shape[1]), np.uint8)
        self._loads: deque[Load] = deque()
        self._finished: deque[Load] = deque()
        self._loading: set[bytes] = set()
        self.num_loads = 0  # that were not taken back yet
        self._chains: deque[tuple[list[bytes], float]] = deque()  # and until when, time.monotonic(), pinned
        self._wakeup = threading.Condition()
        self._busy = False
        self._close_by: float | None = None  # time.monotonic() seconds
        self._rest_until = 0.0
        self._thread = threading.Thread(target=self._run, name="outpace-prefixes", daemon=True)
        self._thread.start()

    # --- what the engine asks for -------------------------------------------------------------------

    def find(self, digests: Sequence[bytes], start: int, limit: int) -> int:
        """How many blocks from `start` on, and before `limit`, are on disk one after the other."""
        return self.store.find(digests, start, limit)

    def is_loading(self, digest: bytes) -> bool:
        """Whether the block is on its way already."""
        return digest in self._loading

    def load(self, digests: list[bytes], block_ids: list[int]) -> Load:
        """Begin to read blocks. Nobody may touch their memory until the load is taken back."""
        load = Load(digests, block_ids)
        self._loading.update(digests)
        self.num_loads += 1
        with self._wakeup:
            self._loads.append(load)
            self._wakeup.notify_all()
        return load

    def take_finished(self) -> list[Load]:
        """The loads that are done."""
        loads: list[Load] = []
        while self._finished:
            load = self._finished.popleft()
            self._loading.difference_update(load.digests)
            self.num_loads -= 1
            loads.append(load)
        return loads

    def wait(self, seconds: float) -> None:
        """Wait until a load is done, or so long."""
        with self._wakeup:
            self._wakeup.wait_for(lambda: self._finished, seconds)

    def keep(self, digests: list[bytes], pin_seconds: float = 0.0) -> None:
        """Write a prefix, from its first block on, where it is worth it and not on disk yet.

        For `pin_seconds` from now on it goes after all that is not pinned.
        """
        if len(digests) < self.min_blocks or not self.store.can_write:
            return
        with self._wakeup:
            self._chains.append((digests, time.monotonic() + pin_seconds))
            if len(self._chains) > _MOST_CHAINS:
                self._chains.popleft()
            self._wakeup.notify_all()

    def flush(self) -> None:
        """Wait until all that was kept is written."""
        with self._wakeup:
            self._wakeup.wait_for(lambda: not (self._chains or self._busy or self._loads))

    def close(self) -> None:
        """Write what is not written yet, for some seconds at most, and end the thread. Safe to call twice."""
        with self._wakeup:
            self._close_by = time.monotonic() + _CLOSE_SECONDS
            self._wakeup.notify_all()
        self._thread.join()
        self.store.close()
        self._memory = self._states = None

    # --- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            work = self._next()
            if work is None:
                return
            started = time.monotonic()
            if isinstance(work, Load):
                self._read(work)
                self.load_seconds += time.monotonic() - started
                continue
            digests, pinned_until = work
            written = self._write(digests[: self._slice], max(0.0, pinned_until - started))
            now = time.monotonic()
            self._rest_until = now + _REST * (now - started)
            with self._wakeup:
                if written and len(digests) > self._slice:
                    self._chains.appendleft((digests[self._slice :], pinned_until))

    def _next(self) -> Load | tuple[list[bytes], float] | None:
        """Wait for work: a load, or a chain of which a slice is to be written. None: the end."""
        with self._wakeup:
            self._busy = False
            self._wakeup.notify_all()
            while True:
                now = time.monotonic()
                if self._close_by is not None and (not self._chains or now > self._close_by):
                    return None
                if self._loads or (self._chains and (self._close_by or now >= self._rest_until)):
                    break
                self._wakeup.wait(self._rest_until - now if self._chains else None)
            self._busy = True
            return self._loads.popleft() if self._loads else self._chains.popleft()

    def _read(self, load: Load) -> None:
        assert self._memory is not None
        if self._states is not None:
            self._states[load.block_ids] = 0
        try:
            load.num_loaded = self.store.read(load.digests, [self._memory[i] for i in load.block_ids])
        except Exception:  # the prefix is computed instead
            _log.exception("a prefix could not be read from disk")
        with self._wakeup:
            self._finished.append(load)
            self._wakeup.notify_all()

    def _write(self, digests: list[bytes], pinned: float) -> bool:
        """Write those that are not on disk; whether the rest of their chain is still worth it."""
        try:
            self.store.touch(digests, pinned)
            missing = [digest for digest in digests if digest not in self.store]
            copied = self._copy(missing)
            if copied:
                self.store.write(missing[:copied], self._copies[:copied])
                if pinned:
                    self.store.touch(missing[:copied], pinned)
            return copied == len(missing) and self.store.can_write
        except Exception:  # a prefix is computed again some day, nothing else
            _log.exception("a prefix could not be written to disk")
            return False

    def _copy(self, digests: list[bytes]) -> int:
        """Copy blocks out of the KV cache; how many it had, from the first on."""
        assert self._memory is not None
        for i, digest in enumerate(digests):
            block = self._cache.block_of(digest)
            if block is None:
                return i
            # The order counts: an eviction forgets the digest, then raises the epoch, and only then may the
            # block change. If the digest is there after the epoch was read, every later eviction raises it.
            epoch = self._cache.epoch(block)
            if self._cache.block_of(digest) != block:  # evicted meanwhile
                return i
            np.copyto(self._copies[i], self._memory[block])
            if self._cache.epoch(block) != epoch:
                return i
        return len(digests)
