"""The blocks of the paged KV cache: who holds how many, and which are free.

The pool knows ids and counts; the memory behind them is the backend's.
"""

from __future__ import annotations

from outpace.engine.prefix_cache import PrefixCache

__all__ = ["BlockPool"]


class BlockPool:
    """Reference counts over `num_blocks` blocks. A cached block that nobody holds counts as free."""

    def __init__(self, num_blocks: int, cache: PrefixCache | None = None) -> None:
        self.num_blocks = num_blocks
        self.cache = cache
        self.num_releases = 0  # grows when blocks may have become free
        self._free = list(range(num_blocks - 1, -1, -1))  # holds nothing of use; a stack
        self._holders = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give, cached ones that nobody holds included."""
        return len(self._free) + (0 if self.cache is None else self.cache.num_unused)

    @property
    def num_held(self) -> int:
        """Blocks that requests hold."""
        return self.num_blocks - self.num_free

    def allocate(self) -> int | None:
        """A block for one holder; evicts the oldest unused cached block where no other is free."""
        if self._free:
            block = self._free.pop()
        else:
            evicted = None if self.cache is None else self.cache.evict()
            if evicted is None:
                return None
            block = evicted
        assert self._holders[block] == 0, "a free block has no holder"
        self._holders[block] = 1
        return block

    def share(self, blocks: list[int]) -> None:
        """One more holder for cached blocks."""
        for block in blocks:
            if self._holders[block] == 0 and self.cache is not None:
                self.cache.hold(block)
            self._holders[block] += 1

    def release(self, blocks: list[int]) -> None:
        """One holder less. Given in the order of the tokens, so the end of a prefix is evicted first."""
        self.num_releases += 1
        for block in reversed(blocks):
            self._holders[block] -= 1
            assert self._holders[block] >= 0, "a block is released once for each holder"
            if self._holders[block] == 0 and (self.cache is None or not self.cache.release(block)):
                self._free.append(block)

    def check(self) -> None:
        """Assert that every block is either held or free, once. For tests."""
        held = sum(1 for count in self._holders if count)
        assert held == self.num_held, f"{held} blocks have holders, {self.num_held} are not free"
        assert len(set(self._free)) == len(self._free), "a block is free once"
