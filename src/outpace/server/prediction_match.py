"""How much of a predicted output an answer has, whoever drafted it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

__all__ = ["PredictionMatch"]

_FREQUENT = 64  # times that a token occurs in the prediction: its places are kept as bits


class PredictionMatch:
    """Counts the tokens of a prediction that an answer has in the same order, as the answer comes.

    That is the length of their longest common subsequence, by adding rows of bits (Hyyrö 2004): a token takes
    microseconds, in proportion to the prediction's length; some 30 where that is 32,768.
    """

    def __init__(self, prediction: Sequence[int]) -> None:
        self.num_predicted = len(prediction)
        self._places: defaultdict[int, list[int]] = defaultdict(list)
        for place, token_id in enumerate(prediction):
            self._places[token_id].append(place)
        self._frequent: dict[int, int] = {}
        self._all = (1 << self.num_predicted) - 1
        self._row = self._all  # a bit is 0 where the subsequence is one longer than up to the place before it

    def add(self, token_ids: Sequence[int]) -> None:
        """The answer goes on with these tokens."""
        for token_id in token_ids:
            if token_id in self._places:
                same = self._row & self._bits(token_id)
                self._row = ((self._row + same) | (self._row - same)) & self._all

    @property
    def num_accepted(self) -> int:
        """Tokens of the prediction that the answer has so far."""
        return self.num_predicted - self._row.bit_count()

    def _bits(self, token_id: int) -> int:
        """Where the token occurs in the prediction."""
        known = self._frequent.get(token_id)
        if known is not None:
            return known
        places = self._places[token_id]
        row = bytearray(places[-1] // 8 + 1)
        for place in places:
            row[place >> 3] |= 1 << (place & 7)
        bits = int.from_bytes(row, "little")
        if len(places) >= _FREQUENT:
            self._frequent[token_id] = bits
        return bits
