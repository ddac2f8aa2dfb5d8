"""In which order cached blocks leave memory: by what they are worth, and of equals the oldest first.

Segmented LRU (Karedla, Love and Wherry, 1994): a block is on *probation* until a later request uses it, and
*proven* from then on. What is on probation goes first, so a flood of prompts that nobody comes back to passes
by what sessions live on. Proven blocks have four fifths of the room; where they have more, the one that was
used least recently is on probation again, so nothing is kept for what it once was.

No block outlives one before it in its prefix: whoever uses a block uses all before it, and a prefix is
released from its end on.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterable
from operator import itemgetter

__all__ = ["EvictionOrder"]

_PROVEN_SHARE = 4  # proven blocks for each one on probation, at the most
_UNPIN_EVERY = 5.0  # seconds


class EvictionOrder:
    """The blocks that nobody holds, and what is known of all blocks that are cached: `prove`, `pin`.

    At most `max_pinned` blocks are pinned at a time: they go after all others, until their time is over.
    """

    def __init__(self, max_pinned: int) -> None:
        # Block -> number of its release; least recently released first.
        self._probation: OrderedDict[int, int] = OrderedDict()
        self._proven: OrderedDict[int, int] = OrderedDict()
        self._pinned: OrderedDict[int, int] = OrderedDict()
        self._num_released = 0
        self._is_proven: set[int] = set()
        self._pins: dict[int, float] = {}  # block -> until when, time.monotonic() seconds
        self._next_expiry = math.inf
        self._max_pinned = max_pinned

    def __len__(self) -> int:
        """Blocks that can go."""
        return len(self._probation) + len(self._proven) + len(self._pinned)

    @property
    def num_pinned(self) -> int:
        """Blocks that are pinned, held or not; some of them for a time that is over."""
        return len(self._pins)

    def add(self, block: int) -> None:
        """Nobody holds the block any more."""
        self._num_released += 1
        queue = self._pinned if block in self._pins else self._queue(block)
        queue[block] = self._num_released

    def _queue(self, block: int) -> OrderedDict[int, int]:
        return self._proven if block in self._is_proven else self._probation

    def discard(self, block: int) -> None:
        """Somebody holds the block."""
        self._probation.pop(block, None)
        self._proven.pop(block, None)
        self._pinned.pop(block, None)

    def prove(self, blocks: Iterable[int]) -> None:
        """Held blocks are of use to more than one request."""
        self._is_proven.update(blocks)

    def pin(self, blocks: Iterable[int], until: float) -> None:
        """Let held blocks go last until `until` (`time.monotonic()` seconds), as many as may be pinned.

        Given in the order of the tokens. A block that is pinned for longer stays so.
        """
        self._unpin_expired()
        self._next_expiry = min(self._next_expiry, until)
        for block in blocks:
            if block in self._pins or len(self._pins) < self._max_pinned:
                self._pins[block] = max(until, self._pins.get(block, 0.0))

    def _unpin_expired(self) -> None:
        now = time.monotonic()
        if now < self._next_expiry:
            return
        self._pins = {block: until for block, until in self._pins.items() if until > now}
        # Not at once for the next: what follows takes as long as there are blocks.
        self._next_expiry = max(min(self._pins.values(), default=math.inf), now + _UNPIN_EVERY)
        expired = [(block, number) for block, number in self._pinned.items() if block not in self._pins]
        for block, number in expired:
            del self._pinned[block]
            self._queue(block)[block] = number
        if expired:  # they go back to where they would be by now
            self._probation = OrderedDict(sorted(self._probation.items(), key=itemgetter(1)))
            self._proven = OrderedDict(sorted(self._proven.items(), key=itemgetter(1)))

    def pop(self) -> int | None:
        """Take out the block that goes next, and forget what was known of it; None where there is none."""
        if self._pins:
            self._unpin_expired()
        while len(self._proven) > _PROVEN_SHARE * len(self._probation):
            demoted, _ = self._proven.popitem(last=False)
            self._num_released += 1
            self._probation[demoted] = self._num_released
        queue = self._probation or self._pinned
        if not queue:
            return None
        block, _ = queue.popitem(last=False)
        self._pins.pop(block, None)
        self._is_proven.discard(block)
        return block
