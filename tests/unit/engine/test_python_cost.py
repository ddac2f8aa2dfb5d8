"""What Python costs in a decode step, with a backend that computes nothing."""

from __future__ import annotations

import time

import pytest

from engine_harness import make_engine, null_backend
from outpace.types import SamplingParams

STEPS = 300


def step_microseconds(num_requests: int) -> float:
    """The quickest of many decode steps: schedule, pack, null step, commit, text, deltas."""
    engine = make_engine(null_backend(num_requests * 16))
    params = SamplingParams(temperature=0, max_tokens=STEPS + 30, ignore_eos=True)
    for number in range(num_requests):
        engine.submit([number + 1] * 16, params, str(number))
    for _ in range(20):
        assert engine.step()
    times: list[float] = []
    for _ in range(STEPS):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


def python_microseconds() -> float:
    """The quickest of many runs of a fixed piece of Python: what the interpreter is worth here and now."""
    times: list[float] = []
    for _ in range(STEPS):
        start = time.perf_counter()
        counts: dict[int, int] = {}
        for number in range(500):
            counts[number % 17] = counts.get(number % 17, 0) + number
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


@pytest.mark.parametrize(("num_requests", "limit"), [(1, 2.5), (16, 20), (64, 75)])
def test_a_decode_step_costs_little_python(num_requests: int, limit: float) -> None:
    """In units of that piece, so that the limit is of the code and not of the machine."""
    unit = python_microseconds()
    cost = step_microseconds(num_requests)
    unit = max(unit, python_microseconds())  # a neighbour may have come meanwhile
    print(f"{num_requests} requests: {cost:.0f} microseconds a step, {cost / unit:.2f} units of {unit:.0f}")
    assert cost < limit * unit
