"""How many rows of prompts a step may take, so that a long prompt never stalls a stream for long.

What a prompt's row costs is learned from what steps really took, by the tokens that it sees: attention makes
the rows of a long context dearer. A step that was dearer than expected counts at once, a cheaper one slowly.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Pacing"]

_SHARE = 0.8
"""Of the bound that a step is planned to take; the rest is for what no estimate foresees."""

_LEAST_ROWS = 8
"""A prompt always gets on, though the machine be too slow for the bound."""

_FIRST_ROWS = 32  # where nothing is known yet
_SMALL = 4  # a chunk of less than one in so many of the rows it might have had is small
_RATE = 0.3  # of a cheaper observation
_MANY_ROWS = 64  # of prompts: at least half of what such a step takes is theirs
_AGE = 1.01  # of the cheapest row, with each step that has dearer ones: it was cheap long ago
_NEAR = 1024  # tokens; the costs are kept for contexts up to this, up to twice of it, and so on


class Pacing:
    """Learns what steps cost, and bounds the prompt rows of the next one. Times are in seconds."""

    def __init__(self, max_stall: float) -> None:
        """`max_stall`: the longest gap between the tokens of a stream; 0: no bound."""
        self._max_stall = max_stall
        self._per_row: dict[int, float] = {}  # by `_bucket`
        self._decode = 0.0  # of a step without prompt rows
        self.row_seconds = 0.0  # the cheapest row of all; 0: not known yet
        self._least: dict[int, float] = {}  # the cheapest row that was seen, by `_bucket`

    def max_rows(self, context: int) -> int:
        """Prompt rows that keep the bound where each sees up to `context` tokens, beside streams."""
        if not self._max_stall:
            return 1 << 30
        per_row = self._cost(_bucket(context))
        if per_row is None:
            return _FIRST_ROWS
        return max(_LEAST_ROWS, int((self._max_stall * _SHARE - self._decode) / max(per_row, 1e-9)))

    def least_seconds(self, start: int, end: int) -> float:
        """What a prompt's tokens from `start` up to `end` take at the best speed seen; 0 where none was."""
        return sum(
            (min(at + _NEAR, end) - at)
            * min((cost for known, cost in self._least.items() if known <= _bucket(at + 1)), default=0.0)
            for at in range(start, end, _NEAR)
        )

    def observe(self, chunks: Sequence[tuple[int, int]], seconds: float) -> None:
        """A step took `seconds`; `chunks` are its prompts' (rows, tokens seen by the last row)."""
        if not chunks:
            self._decode = seconds if not self._decode else self._decode + _RATE * (seconds - self._decode)
            return
        rows = sum(chunk[0] for chunk in chunks)
        self._observe_least(chunks, seconds, rows)
        known = {_bucket(context): self._cost(_bucket(context)) for _, context in chunks}
        kept = seconds <= self._max_stall * _SHARE
        seconds = max(seconds - self._decode, 1e-9)
        if None in known.values():  # the first of all
            for bucket in known:
                self._per_row[bucket] = seconds / rows
            return
        expected = sum(count * (known[_bucket(context)] or 0.0) for count, context in chunks)
        ratio = seconds / max(expected, 1e-9)
        if kept and rows * _SMALL < self.max_rows(max(context for _, context in chunks)):
            return  # reading the weights is most of it: that says little of a row
        for bucket, cost in known.items():
            self._per_row[bucket] = (cost or 0.0) * (ratio if ratio > 1.0 else 1.0 + _RATE * (ratio - 1.0))

    def _observe_least(self, chunks: Sequence[tuple[int, int]], seconds: float, rows: int) -> None:
        """See whether the step's rows of prompts, `rows` of them, were the cheapest so far."""
        own = seconds - self._decode
        # A few rows take about as long as none, so the difference is chance unless it is large.
        if rows < _MANY_ROWS and (not self._decode or own < self._decode):
            return
        cost = max(own, seconds / 2) / rows
        for bucket in {_bucket(context) for _, context in chunks}:
            self._least[bucket] = min(cost, self._least.get(bucket, cost) * _AGE)
        self.row_seconds = min(self._least.values())

    def _cost(self, bucket: int) -> float | None:
        """Seconds of a row; of a context that was never met, twice as much as half of it, to be safe."""
        nearest = max((known for known in self._per_row if known <= bucket), default=None)
        if nearest is None:
            return min(self._per_row.values(), default=None)
        return self._per_row[nearest] * 2.0 ** (bucket - nearest)


def _bucket(context: int) -> int:
    return (max(context - 1, 0) // _NEAR).bit_length()
