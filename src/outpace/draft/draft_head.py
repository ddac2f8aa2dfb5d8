"""Guesses from a head trained on the model's own hidden states, which costs a layer or two a token.

It sees of a request the end alone, at least `WINDOW` tokens where there are so many: its layers look at what
the model has read already, so little is lost. What it has read lies in blocks of its own, at positions that
count from where it began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from outpace.draft.held_text import HeldText
from outpace.draft.proposer import Proposal
from outpace.draft.step_costs import StepCosts
from outpace.types import DraftHead, DraftRequest, HeadBatch, Int32Array

__all__ = ["WINDOW", "HeadProposer"]

WINDOW = 256

_NUM_CLASSES = 16  # by the chance that the head gives its guess
_OVERHEAD = 5e-5  # seconds of a call outside of the head's rows
_MOST_ROWS = 64  # whose cost is known; more cost as many times that
_SPEED_RATE = 0.1  # of a new observation
_FARTHEST = 3.0  # a call that took longer than this, relatively, was disturbed: it counts as that


@dataclass(slots=True, kw_only=True)
class _Sequence(HeldText):
    """What the head holds of a request."""

    num_read: int  # tokens, from the request's first one on, up to which it has read


class HeadProposer:
    """Asks `head`; a `outpace.types.ComputingProposer`.

    `costs`: of the model's steps; `share`: the bytes that a row of the head reads, over those of a row of the
    model. Together they are where its own costs start; what it takes corrects them.
    """

    name = "head"
    priors: Sequence[float] = tuple((index + 0.5) / _NUM_CLASSES for index in range(_NUM_CLASSES))

    def __init__(self, head: DraftHead, costs: StepCosts, share: float) -> None:
        self._head = head
        self._costs = costs
        self._share = share
        self._window = min(WINDOW, head.context // 2)
        self._free_blocks = list(range(head.num_blocks))
        self._sequences: dict[str, _Sequence] = {}

    # --- what it costs ----------------------------------------------------------------------------

    def seconds(self, num_requests: int) -> float:
        """A pass with a row for each."""
        return self._rows_seconds(num_requests)

    def setup_seconds(self, request: DraftRequest) -> float:
        """To read what it has not seen, or the last of it, beyond one token."""
        sequence = self._sequences.get(request.key)
        missing = request.num_tokens - (0 if sequence is None else sequence.num_read)
        return self._rows_seconds(min(missing, self._window) - 1) + _OVERHEAD

    def _rows_seconds(self, num_rows: int) -> float:
        if num_rows <= 0:
            return 0.0
        many = max(1.0, num_rows / _MOST_ROWS)
        return self._share * many * self._costs.seconds(min(num_rows, _MOST_ROWS))

    def _observe(self, expected: float, seconds: float) -> None:
        ratio = min(max(seconds / expected, 1.0 / _FARTHEST), _FARTHEST)
        self._share *= ratio**_SPEED_RATE

    # --- guessing ---------------------------------------------------------------------------------

    def propose(
        self,
        requests: Sequence[DraftRequest],
        max_tokens: Sequence[int],
        least_chances: Sequence[float] = (),
    ) -> Sequence[tuple[int, Proposal]]:
        """See `outpace.types.ComputingProposer`."""
        asked: list[int] = []
        rooms: list[int] = []
        sequences: list[_Sequence] = []
        for i, (request, most) in enumerate(zip(requests, max_tokens, strict=True)):
            sequence = self._settled(request, most) if most > 0 else None
            if sequence is not None:
                asked.append(i)
                rooms.append(min(most, sequence.room(request)))
                sequences.append(sequence)
        if not asked:
            return []
        batch = _batch([requests[i] for i in asked], sequences, rooms, least_chances)
        started = perf_counter()
        out = self._head.guess(batch)
        took = perf_counter() - started
        for i, sequence in zip(asked, sequences, strict=True):
            sequence.num_read = requests[i].num_tokens
        counts: list[int] = out.num_tokens.tolist()
        passes = [sum(count > depth for count in counts) for depth in range(1, max(counts))]
        expected = self._rows_seconds(len(batch.token_ids)) + sum(map(self._rows_seconds, passes))
        self._observe(expected + _OVERHEAD, took)
        classes = np.minimum(out.chances * _NUM_CLASSES, _NUM_CLASSES - 1).astype(np.int32).tolist()
        token_ids: list[list[int]] = out.token_ids.tolist()
        return [
            (i, Proposal(tokens[:count], own[:count]))
            for i, tokens, own, count in zip(asked, token_ids, classes, counts, strict=True)
            if count
        ]

    def _settled(self, request: DraftRequest, num_guesses: int) -> _Sequence | None:
        """The request's sequence, with as much room for guesses as there is; None where there is none."""
        sequence = self._sequences.get(request.key)
        if (
            sequence is None
            or request.num_tokens + num_guesses - sequence.start > self._head.context
            or request.num_tokens - sequence.num_read > self._window
        ):
            self.finish(request)
            start = max(0, request.num_tokens - self._window)
            sequence = self._sequences[request.key] = _Sequence(start=start, num_read=start)
        # The last token is always read again: what follows it is the question.
        sequence.num_read = min(sequence.num_read, request.num_tokens - 1)
        return sequence if sequence.find_room(request, num_guesses, self._free_blocks) else None

    # --- the end ----------------------------------------------------------------------------------

    def finish(self, request: DraftRequest) -> None:
        """Free the request's blocks."""
        sequence = self._sequences.pop(request.key, None)
        if sequence is not None:
            self._free_blocks += sequence.block_ids

    def close(self) -> None:
        """Drop what is kept; the head's memory goes with its model's."""
        self._sequences.clear()


def _batch(
    requests: Sequence[DraftRequest],
    sequences: Sequence[_Sequence],
    max_tokens: Sequence[int],
    least_chances: Sequence[float],
) -> HeadBatch:
    unread = [
        request.token_ids[sequence.num_read :] for request, sequence in zip(requests, sequences, strict=True)
    ]
    return HeadBatch(
        token_ids=np.concatenate(unread),
        row_start=np.cumsum([0, *map(len, unread)], dtype=np.int32),
        positions=np.array([sequence.num_read for sequence in sequences], np.int32),
        starts=np.array([sequence.start for sequence in sequences], np.int32),
        block_tables=_tables([request.block_ids for request in requests]),
        head_block_tables=_tables([sequence.block_ids for sequence in sequences]),
        max_tokens=np.array(max_tokens, np.int32),
        sampling=np.concatenate([request.sampling_record for request in requests]),
        least_chances=np.array([*least_chances, *[0.0] * max(max_tokens)], np.float32),
    )


def _tables(rows: Sequence[Sequence[int]]) -> Int32Array:
    """[len(rows), longest], -1 past the end."""
    tables = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for table, row in zip(tables, rows, strict=True):
        table[: len(row)] = row
    return tables
