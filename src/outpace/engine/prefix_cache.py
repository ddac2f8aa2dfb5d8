"""Which full blocks of the KV cache hold which prefix.

A block is known by a chained hash: blake2b over the digest of the block before it and its own token ids, so
a digest stands for the whole prefix. 128 bits: a collision, which would change an answer, is out of reach
of chance and of attackers.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from hashlib import blake2b

from outpace.types import BLOCK_SIZE, Int32Array

__all__ = ["PrefixCache", "extend_digests"]


def extend_digests(digests: list[bytes], token_ids: Int32Array, num_blocks: int, scope: bytes = b"") -> None:
    """Extend `digests`, one for each full block of `token_ids`, to `num_blocks` of them.

    Equal tokens of different scopes have different digests: what one has cached the other does not find.
    """
    for index in range(len(digests), num_blocks):
        block = token_ids[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
        digests.append(blake2b((digests[-1] if index else scope) + block.tobytes(), digest_size=16).digest())


class PrefixCache:
    """Digest -> block, and the blocks that nobody holds any more in the order in which they go.

    At most `max_pinned` blocks are pinned at a time: they go after all others, until their time is over.
    """

    def __init__(self, max_pinned: int = 0) -> None:
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._unused_pinned: OrderedDict[int, None] = OrderedDict()  # the same, of those that are pinned
        self._pins: dict[int, float] = {}  # block -> until when, time.monotonic() seconds
        self._next_expiry = math.inf
        self._max_pinned = max_pinned
        self._epochs: dict[int, int] = {}  # block -> how often it was evicted
        self.num_evicted = 0

    def __len__(self) -> int:
        """Blocks that are cached, held or not."""
        return len(self._block_of)

    @property
    def num_unused(self) -> int:
        """Cached blocks that no request holds."""
        return len(self._unused) + len(self._unused_pinned)

    @property
    def num_pinned(self) -> int:
        """Blocks that are pinned, held or not; some of them for a time that is over."""
        return len(self._pins)

    def find(self, digests: list[bytes], limit: int) -> list[int]:
        """The blocks of the longest cached prefix, at most `limit` of them."""
        blocks: list[int] = []
        for digest in digests[:limit]:
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def block_of(self, digest: bytes) -> int | None:
        """The block with this digest. Any thread may ask."""
        return self._block_of.get(digest)

    def epoch(self, block: int) -> int:
        """A number that grows before a cached block's content may change. Any thread may ask."""
        return self._epochs.get(block, 0)

    def insert(self, digest: bytes, block: int) -> None:
        """Remember a held block whose content is valid. A prefix that is known already keeps its block."""
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def hold(self, block: int) -> None:
        """A request holds the block from now on: it is not evicted."""
        self._unused.pop(block, None)
        self._unused_pinned.pop(block, None)

    def pin(self, blocks: list[int], until: float) -> None:
        """Let held blocks go last until `until` (`time.monotonic()` seconds), as many as may be pinned.

        Given in the order of the tokens. A block that is pinned for longer stays so.
        """
        self._unpin_expired()
        self._next_expiry = min(self._next_expiry, until)
        for block in blocks:
            if block in self._digest_of and (block in self._pins or len(self._pins) < self._max_pinned):
                self._pins[block] = max(until, self._pins.get(block, 0.0))

    def _unpin_expired(self) -> None:
        now = time.monotonic()
        if now < self._next_expiry:
            return
        expired = [block for block, until in self._pins.items() if until <= now]
        for block in expired:
            del self._pins[block]
        self._next_expiry = min(self._pins.values(), default=math.inf)
        # They have not been used for longer than what is not pinned, or may be taken so.
        for block in reversed([block for block in self._unused_pinned if block not in self._pins]):
            del self._unused_pinned[block]
            self._unused[block] = None
            self._unused.move_to_end(block, last=False)

    def release(self, block: int) -> bool:
        """Nobody holds the block any more. Whether it stays, cached, until it is evicted."""
        if block not in self._digest_of:
            return False
        (self._unused_pinned if block in self._pins else self._unused)[block] = None
        return True

    def evict(self) -> int | None:
        """Forget the block that was released longest ago and return it; None where there is none."""
        if self._pins:
            self._unpin_expired()
        unused = self._unused or self._unused_pinned
        if not unused:
            return None
        block, _ = unused.popitem(last=False)
        self._pins.pop(block, None)
        self.num_evicted += 1
        self._epochs[block] = self._epochs.get(block, 0) + 1
        del self._block_of[self._digest_of.pop(block)]
        return block
