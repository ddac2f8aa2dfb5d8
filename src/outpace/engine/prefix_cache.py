"""Which full blocks of the KV cache hold which prefix.

A block is known by a chained hash: blake2b over the digest of the block before it and its own token ids, so
a digest stands for the whole prefix. 128 bits: a collision, which would change an answer, is out of reach
of chance and of attackers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from outpace.engine.eviction_order import EvictionOrder
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
    """Digest -> block, and which block goes where another needs its place.

    What comes back after it was evicted is proven at once (as in 2Q, Johnson and Shasha, 1994), so that new
    sessions get room beside old ones. At most `max_pinned` blocks are pinned at a time.
    """

    def __init__(self, max_pinned: int = 0) -> None:
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._unused = EvictionOrder(max_pinned)
        self._continued: set[int] = set()  # blocks that another one has followed
        self._gone: OrderedDict[bytes, None] = OrderedDict()  # evicted, the oldest first
        self._epochs: dict[int, int] = {}  # block -> how often it was evicted
        self.num_evicted = 0

    def __len__(self) -> int:
        """Blocks that are cached, held or not."""
        return len(self._block_of)

    @property
    def num_unused(self) -> int:
        """Cached blocks that no request holds."""
        return len(self._unused)

    @property
    def num_pinned(self) -> int:
        """Blocks that are pinned, held or not; some of them for a time that is over."""
        return self._unused.num_pinned

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
        """A number that grows before a cached block's content may change. Any thread may ask.

        It grows after the block's digest was forgotten: of a block that `block_of` gives for a digest after
        the epoch was read, the content is that digest's until the epoch has changed.
        """
        return self._epochs.get(block, 0)

    def insert(self, digest: bytes, block: int, *, after: bytes = b"", proven: bool = False) -> None:
        """Remember a held block whose content is valid. A prefix that is known already keeps its block.

        `after`: the digest of the block before it; `proven`: more than one request has had use for it.
        """
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest
            missed = self._gone.pop(digest, 0) is None  # its place was too small
            if proven or missed:
                self._unused.prove((block,))
        before = self._block_of.get(after)
        if before is not None:
            self._continued.add(before)

    def hold(self, block: int) -> None:
        """A request holds the block from now on: it is not evicted."""
        self._unused.discard(block)

    def reuse(self, blocks: Sequence[int]) -> bool:
        """A later request uses these held blocks, the beginning of a prefix.

        Whether it goes on where an earlier one ended, as a session does: then its own blocks are as useful.
        """
        self._unused.prove(blocks)
        return bool(blocks) and blocks[-1] not in self._continued

    def pin(self, blocks: Sequence[int], until: float) -> None:
        """Let held blocks go last until `until` (`time.monotonic()` seconds), as many as may be pinned.

        Given in the order of the tokens. A block that is pinned for longer stays so.
        """
        self._unused.pin((block for block in blocks if block in self._digest_of), until)

    def release(self, block: int) -> bool:
        """Nobody holds the block any more. Whether it stays, cached, until it is evicted."""
        if block not in self._digest_of:
            return False
        self._unused.add(block)
        return True

    def evict(self) -> int | None:
        """Forget the block that is worth least and return it; None where there is none."""
        block = self._unused.pop()
        if block is None:
            return None
        self.num_evicted += 1
        self._continued.discard(block)
        digest = self._digest_of.pop(block)
        del self._block_of[digest]
        self._gone[digest] = None
        if len(self._gone) > len(self._block_of) + 1:  # as many as there are blocks
            self._gone.popitem(last=False)
        # After its digest is gone: who finds the digest once it has read the epoch has read the one before.
        self._epochs[block] = self._epochs.get(block, 0) + 1
        return block
