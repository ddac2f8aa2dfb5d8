"""An index of all requests' text is fed by a thread of its own: nobody waits for that thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter

import numpy as np

from outpace import _native
from outpace.draft.suffix import SHARED_ORDERS
from outpace.types import Int32Array

VOCAB = 50_000


def tokens(count: int) -> Int32Array:
    return np.random.default_rng(0).integers(0, VOCAB, count, np.int32)


def longest_wait_beside(index: _native.TokenIndex, change: Callable[[], None]) -> float:
    """The longest time between two look-ups beside a thread that changes the index, as a share of all."""
    took = 0.0

    def run() -> None:
        nonlocal took
        start = perf_counter()
        change()
        took = perf_counter() - start

    thread = threading.Thread(target=run)
    end, longest = tokens(64), 0.0
    last, alive = perf_counter(), True
    thread.start()
    while alive:
        alive = thread.is_alive()
        _native.propose_shared([index], [end], [16])
        last, before = perf_counter(), last
        longest = max(longest, last - before)
    return longest / took


def test_look_ups_do_not_wait_for_a_thread_that_appends() -> None:
    """Nor for an index that grows or shrinks. A busy machine gets three tries."""
    text = tokens(1 << 18)

    def waits() -> list[float]:
        index = _native.TokenIndex(1 << 19, SHARED_ORDERS)
        return [
            longest_wait_beside(index, lambda: index.append(text)),
            longest_wait_beside(index, lambda: index.append(text[:1])),  # twice the ring
            longest_wait_beside(index, lambda: index.set_capacity(1 << 18)),
        ]

    assert any(max(waits()) < 0.25 for _ in range(3))
