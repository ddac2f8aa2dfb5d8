"""How fast this machine reads memory and multiplies, and how much of the former a decode step uses (MBU)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

REPEATS, LIMIT_REPEATS = 5, 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the machine can do at best, on the backend's threads."""

    bandwidth_gb_s: float  # streaming read of as many bytes as the step reads
    peak_gmac_s: float  # the tier's int8 dot product from registers
    clock_ghz: float  # of one core while all of them work


def read_bandwidth(num_bytes: int, num_threads: int) -> float | None:
    """GB/s of a streaming read of `num_bytes` in huge pages by `num_threads` threads.

    The best of five passes, so that MBU flatters nobody; None where the native core is not built.
    """
    try:
        from outpace import _native
    except ImportError:
        return None
    return _native.read_bandwidth(num_bytes, max(1, num_threads), REPEATS)


def measure_limits(isa: str, num_threads: int, num_bytes: int) -> Limits:
    """The best of fifteen passes of each probe: nothing may be faster. Needs the native core."""
    from outpace import _native

    return Limits(
        bandwidth_gb_s=_native.read_bandwidth(num_bytes, num_threads, LIMIT_REPEATS),
        peak_gmac_s=_native.int8_peak(isa, num_threads, LIMIT_REPEATS) / 1e9,
        clock_ghz=_native.clock_rate(num_threads, LIMIT_REPEATS) / 1e9,
    )


def utilisation(weight_bytes: int, seconds_per_step: float, bandwidth_gb_s: float | None) -> float | None:
    """MBU: the weights' bytes over one step's time, as a share of the read bandwidth (0 to 1, or above
    1 where weights stay in a cache that the probe does not reach)."""
    if not bandwidth_gb_s or seconds_per_step <= 0 or weight_bytes <= 0:
        return None
    return weight_bytes / seconds_per_step / (bandwidth_gb_s * 1e9)


def threads_of(description: Mapping[str, str | int]) -> int:
    """The thread count that a backend reports of itself."""
    return int(description.get("threads", 1))
