"""Which full blocks of the KV cache hold which prefix.

A block is known by a chained hash: blake2b over the digest of the block before it and its own token ids, so
a digest stands for the whole prefix. 128 bits: a collision, which would change an answer, is out of reach
of chance and of attackers.
"""

from __future__ import annotations

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
    """Digest -> block, and the blocks that nobody holds any more in the order in which they go."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._epochs: dict[int, int] = {}  # block -> how often it was evicted
        self.num_evicted = 0

    def __len__(self) -> int:
        """Blocks that are cached, held or not."""
        return len(self._block_of)

    @property
    def num_unused(self) -> int:
        """Cached blocks that no request holds."""
        return len(self._unused)

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

    def release(self, block: int) -> bool:
        """Nobody holds the block any more. Whether it stays, cached, until it is evicted."""
        if block not in self._digest_of:
            return False
        self._unused[block] = None
        return True

    def evict(self) -> int | None:
        """Forget the block that was released longest ago and return it; None where there is none."""
        if not self._unused:
            return None
        block, _ = self._unused.popitem(last=False)
        self.num_evicted += 1
        self._epochs[block] = self._epochs.get(block, 0) + 1
        del self._block_of[self._digest_of.pop(block)]
        return block
