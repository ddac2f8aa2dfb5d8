"""What a step costs by its rows: the curve against which a draft has to pay.

The curve is measured when a model is first loaded on a machine (`outpace.engine.calibration`) and corrected
by every step since. A machine's speed as a whole may drift, its neighbours come and go: that changes every
point alike and no decision, so it is followed quickly; the curve's shape, which decides, is followed slowly.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

__all__ = ["KNOTS", "StepCosts"]

KNOTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15, 16, 20, 24, 32, 48, 64)
"""Rows at which the curve is kept; straight between them and beyond. More rows may cost less: kernels have
instances for some numbers of rows, and run others in two passes.
"""

_SHAPE_RATE = 0.06  # of a new observation, against the curve's shape
_SPEED_RATE = 0.2  # and against the machine's speed as a whole
_OBSERVE_EVERY = 4  # steps: more would cost more than it tells
_REFRESH_EVERY = 8  # observations
_FARTHEST = 2.0  # a step that took longer than this, relatively, was disturbed: it counts as that


class StepCosts:
    """Seconds of a step of so many rows, each of which sees so many tokens."""

    def __init__(self, seconds: Mapping[int, float], per_seen_token: float = 0.0) -> None:
        """`seconds`: by rows, without attention; `per_seen_token`: of attention, for each row and token."""
        rows = sorted(seconds)
        values = [seconds[each] for each in rows]
        self.per_seen_token = per_seen_token
        self._knots = [_line(rows, values, knot) for knot in KNOTS]
        self._speed = 1.0
        self._num_steps = 0
        self._table: list[float] = []
        self._refresh()

    @classmethod
    def typical(cls, weight_bytes: int) -> StepCosts:
        """A guess for a machine that nothing is known of, from the bytes that a step reads."""
        one = max(weight_bytes, 1_000_000) / 30e9
        shape = {1: 1.0, 2: 1.08, 4: 1.3, 8: 1.9, 16: 3.3, 32: 6.2, 64: 12.0}
        return cls({rows: one * ratio for rows, ratio in shape.items()})

    @classmethod
    def free(cls) -> StepCosts:
        """Rows cost nothing: whatever may come true is worth a row."""
        return cls({1: 1e-3, 64: 1.0001e-3})

    @property
    def points(self) -> dict[int, float]:
        """The curve as `seconds` of the constructor."""
        return dict(zip(KNOTS, self._knots, strict=True))

    def seconds(self, num_rows: int) -> float:
        """Of a step without attention, on an undisturbed machine."""
        table = self._table
        if num_rows < len(table):
            return table[num_rows]
        slope = max(0.0, table[-1] - table[KNOTS[-2]]) / (KNOTS[-1] - KNOTS[-2])
        return table[-1] + slope * (num_rows - len(table) + 1)

    def observe(self, num_rows: int, num_seen_tokens: float, seconds: float) -> None:
        """A step of so many rows, which saw so many tokens all together, took `seconds`."""
        self._num_steps += 1
        if self._num_steps % _OBSERVE_EVERY:
            return
        expected = (self.seconds(num_rows) + self.per_seen_token * num_seen_tokens) * self._speed
        ratio = min(max(seconds / expected, 1.0 / _FARTHEST), _FARTHEST)
        self._speed *= ratio**_SPEED_RATE
        if num_rows > KNOTS[-1]:
            return
        right = min(bisect_right(KNOTS, num_rows), len(KNOTS) - 1)
        left = right - 1
        share = (num_rows - KNOTS[left]) / (KNOTS[right] - KNOTS[left])
        for knot, weight in ((left, 1.0 - share), (right, share)):
            self._knots[knot] *= math.exp(_SHAPE_RATE * weight * math.log(ratio))
        if self._num_steps % (_OBSERVE_EVERY * _REFRESH_EVERY) == 0:
            self._refresh()

    def _refresh(self) -> None:
        """Spread the knots over all rows."""
        knots = self._knots
        table = [knots[0]]
        for left in range(len(KNOTS) - 1):
            first, last = KNOTS[left], KNOTS[left + 1]
            slope = (knots[left + 1] - knots[left]) / (last - first)
            table += [knots[left] + slope * step for step in range(last - first)]
        self._table = [*table, knots[-1]]


def _line(rows: Sequence[int], values: Sequence[float], at: int) -> float:
    """Straight between the given points, and beyond them as their last two are."""
    if len(rows) == 1:
        return values[0]
    right = min(max(bisect_right(rows, at), 1), len(rows) - 1)
    left = right - 1
    slope = (values[right] - values[left]) / (rows[right] - rows[left])
    return max(values[left] + slope * (at - rows[left]), 1e-9)
