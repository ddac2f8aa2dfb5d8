"""How fast this machine reads memory, and how much of that a decode step uses (MBU)."""

from __future__ import annotations

from collections.abc import Mapping

REPEATS = 5


def read_bandwidth(num_bytes: int, num_threads: int) -> float | None:
    """GB/s of a streaming read of `num_bytes` in huge pages by `num_threads` threads.

    The best of five passes, so that MBU flatters nobody; None where the native core is not built.
    """
    try:
        from outpace import _native
    except ImportError:
        return None
    return _native.read_bandwidth(num_bytes, max(1, num_threads), REPEATS)


def utilisation(weight_bytes: int, seconds_per_step: float, bandwidth_gb_s: float | None) -> float | None:
    """MBU: the weights' bytes over one step's time, as a share of the read bandwidth (0 to 1, or above
    1 where weights stay in a cache that the probe does not reach)."""
    if not bandwidth_gb_s or seconds_per_step <= 0 or weight_bytes <= 0:
        return None
    return weight_bytes / seconds_per_step / (bandwidth_gb_s * 1e9)


def threads_of(description: Mapping[str, str | int]) -> int:
    """The thread count that a backend reports of itself."""
    return int(description.get("threads", 1))
