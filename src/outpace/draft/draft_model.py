"""Guesses from a second, smaller model of the same vocabulary, run ahead of the first one.

It samples with the request's own parameters and noise, so that where the two models agree on what is likely
they agree on the token, at any temperature. Where its second choice is likely, too, the guesses branch.

What it sees of a request is the end alone, at least `WINDOW` tokens where there are so many: to take in a
long prompt would cost more than most answers gain by it. Its keys and values lie in blocks of its own, at
positions counted from where it began to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from outpace.draft.held_text import HeldText
from outpace.draft.proposer import Proposal
from outpace.draft.step_costs import StepCosts
from outpace.types import BLOCK_SIZE, Backend, DraftRequest, Int32Array, StepBatch, StepOutput

__all__ = ["CONTEXT", "WINDOW", "ModelProposer", "num_common_tokens"]

CONTEXT = 1024
"""Tokens of a request that the model holds at most, guesses included; then it starts again with `WINDOW`."""

WINDOW = 256

_COMMON_TOKENS = 1 << 15
_LAST_TOKENS, _MOST_RARE = 64, 10  # of a text's last tokens, so many may be rare: chat templates' are, too

_NUM_CLASSES = 16  # by the chance that the model gives its guess; and as many of second choices
_LEAST_SECOND = 0.06  # the chance from which on a second choice is proposed beside the first
_OVERHEAD = 1e-4  # seconds of a step outside the backend
_READ_ROWS = 128  # of unread text at once, all requests together: streams wait meanwhile
_NOISE_STEP = 0x9E3779B97F4A7C15  # of a seed, for one position; see outpace.engine.sampling
_MASK = (1 << 64) - 1


def num_common_tokens(vocab_size: int) -> int:
    """Tokens, the first of a vocabulary, among which to guess where a text is made of those; 0: of all.

    Byte pairs are numbered as they were merged, the frequent ones first: of 152,000 the first 32,768 are 95 %
    of what is written in English and in code, and a fifth of the output to read. Of German they are 78 %, of
    Russian 54, of Chinese 26.
    """
    return _COMMON_TOKENS if vocab_size > _COMMON_TOKENS else 0


@dataclass(slots=True, kw_only=True)
class _Sequence(HeldText):
    """What the model holds of a request."""

    record: NDArray[np.void]  # [1] of SAMPLING_DTYPE, for positions from `start` on
    num_computed: int = 0  # tokens, from the request's first one on, up to which it has read
    guesses: list[int] = field(default_factory=list[int])  # that it has read beyond them


@dataclass(slots=True)
class _Guess:
    """A proposal in the making."""

    index: int  # of the request, among those asked for
    request: DraftRequest
    sequence: _Sequence
    max_tokens: int
    is_rare: bool  # a text of other tokens than the common ones
    token_ids: list[int] = field(default_factory=list[int])
    classes: list[int] = field(default_factory=list[int])
    # Second choices: the place in `token_ids` that each is for, the token, its class.
    branches: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    chance: float = 1.0  # that all of `token_ids` come true, as the model sees it

    def proposal(self) -> Proposal:
        """The chain, and beside its tokens the second choices, as many as there is room for."""
        branches = self.branches[: self.max_tokens - len(self.token_ids)]
        if not branches:
            return Proposal(self.token_ids, self.classes)
        return Proposal(
            self.token_ids + [token_id for _, token_id, _ in branches],
            self.classes + [index for _, _, index in branches],
            [*range(-1, len(self.token_ids) - 1), *[place - 1 for place, _, _ in branches]],
        )


class ModelProposer:
    """Runs `backend`, whose steps cost `costs`, ahead; a `outpace.types.ComputingProposer`."""

    name = "model"
    priors: Sequence[float] = tuple((index + 0.5) / _NUM_CLASSES for index in range(_NUM_CLASSES)) * 2

    def __init__(self, backend: Backend, costs: StepCosts, *, max_batch_tokens: int) -> None:
        self._backend = backend
        self._costs = costs
        self._max_rows = max_batch_tokens
        self._num_common = num_common_tokens(backend.spec.vocab_size)
        self._context = min(CONTEXT, backend.spec.max_context, backend.num_blocks * BLOCK_SIZE)
        self._window = min(WINDOW, self._context // 2)
        self._free_blocks = list(range(backend.num_blocks))
        self._sequences: dict[str, _Sequence] = {}
        self._closed = False

    # --- what it costs ----------------------------------------------------------------------------

    def seconds(self, num_requests: int) -> float:
        """A step with a row for each."""
        return self._costs.seconds(num_requests) + _OVERHEAD

    def setup_seconds(self, request: DraftRequest) -> float:
        """To read what it has not seen, or the last of it."""
        sequence = self._sequences.get(request.key)
        missing = request.num_tokens - (0 if sequence is None else sequence.num_computed)
        rows = min(missing, self._window) - 1
        many = self._costs.seconds(min(rows, _READ_ROWS)) if rows > 0 else 0.0
        return many * max(1.0, rows / _READ_ROWS)

    # --- guessing ---------------------------------------------------------------------------------

    def propose(
        self,
        requests: Sequence[DraftRequest],
        max_tokens: Sequence[int],
        least_chances: Sequence[float] = (),
    ) -> Sequence[tuple[int, Proposal]]:
        """See `outpace.types.ComputingProposer`."""
        open_ = [
            _Guess(i, request, sequence, min(most, sequence.room(request)), self._is_rare(request))
            for i, (request, most) in enumerate(zip(requests, max_tokens, strict=True))
            if most > 0 and (sequence := self._settled(request, most)) is not None
        ]
        open_ = self._ready(open_)
        made, least = open_, [*least_chances, *[0.0] * max(max_tokens)]
        while open_:
            self._step(open_)
            open_ = [
                guess
                for guess in open_
                if len(guess.token_ids) < guess.max_tokens and guess.chance >= least[len(guess.token_ids)]
            ]
        return [(guess.index, guess.proposal()) for guess in made]

    def _settled(self, request: DraftRequest, num_guesses: int) -> _Sequence | None:
        """The request's sequence, with what came true of its guesses and as much room for new as there is.

        None where there is none, or where the text has tokens that the model lacks.
        """
        sequence = self._sequences.get(request.key)
        if sequence is not None:
            for guess, came in zip(
                sequence.guesses, request.token_ids[sequence.num_computed :].tolist(), strict=False
            ):
                if guess != came:
                    break
                sequence.num_computed += 1
            sequence.guesses.clear()
        if (
            sequence is None
            or request.num_tokens + num_guesses - sequence.start > self._context
            or request.num_tokens - sequence.num_computed > self._window
        ):
            sequence = self._restarted(request)
        # The last token is always read again: what follows it is the question.
        sequence.num_computed = min(sequence.num_computed, request.num_tokens - 1)
        unread = request.token_ids[sequence.num_computed :]
        if int(unread.max()) >= self._backend.spec.vocab_size:
            return None
        return sequence if sequence.find_room(request, num_guesses, self._free_blocks) else None

    def _restarted(self, request: DraftRequest) -> _Sequence:
        self.finish(request)
        start = max(0, request.num_tokens - self._window)
        record = request.sampling_record.copy()
        record["num_logprobs"] = 2
        record["seed"] = (int(record["seed"][0]) + _NOISE_STEP * start) & _MASK
        sequence = self._sequences[request.key] = _Sequence(record=record, start=start, num_computed=start)
        return sequence

    def _ready(self, guesses: Sequence[_Guess]) -> list[_Guess]:
        """Those whose unread tokens fit into a step; of the others one reads on, to guess in a later call."""
        ready: list[_Guess] = []
        room = min(_READ_ROWS, self._max_rows)
        for guess in sorted(guesses, key=_num_unread):
            if _num_unread(guess) <= room:
                ready.append(guess)
                room -= _num_unread(guess)
            elif room:
                sequence = guess.sequence
                rows = guess.request.token_ids[sequence.num_computed : sequence.num_computed + room]
                self._run([guess], [rows], sample=False)
                sequence.num_computed += room
                room = 0
        return ready

    def _step(self, guesses: Sequence[_Guess]) -> None:
        """One more guess for each."""
        rows: list[Int32Array] = []
        for guess in guesses:
            if guess.token_ids:
                rows.append(np.array(guess.token_ids[-1:], np.int32))
            else:
                rows.append(guess.request.token_ids[guess.sequence.num_computed :])
        out = self._run(guesses, rows, sample=True)
        assert out.logprobs is not None
        assert out.top_token_ids is not None
        assert out.top_logprobs is not None
        token_ids: list[int] = out.token_ids[:, 0].tolist()
        chances: list[float] = np.exp(out.logprobs[:, 0]).tolist()
        top_token_ids: list[list[int]] = out.top_token_ids[:, 0].tolist()
        top_chances: list[list[float]] = np.exp(out.top_logprobs[:, 0]).tolist()
        for guess, token_id, chance, ids, their_chances in zip(
            guesses, token_ids, chances, top_token_ids, top_chances, strict=True
        ):
            guess.sequence.num_computed = guess.request.num_tokens
            guess.sequence.guesses = guess.token_ids[:]  # the new one is not read yet
            second = int(ids[0] == token_id)
            if their_chances[second] >= _LEAST_SECOND:
                index = _NUM_CLASSES + _class(their_chances[second])
                guess.branches.append((len(guess.token_ids), ids[second], index))
            guess.token_ids.append(token_id)
            guess.classes.append(_class(chance))
            guess.chance *= chance

    def _run(self, guesses: Sequence[_Guess], rows: Sequence[Int32Array], *, sample: bool) -> StepOutput:
        sequences = [guess.sequence for guess in guesses]
        counts = [len(each) for each in rows]
        width = max(len(sequence.block_ids) for sequence in sequences)
        tables = np.full((len(sequences), width), -1, np.int32)
        for table, sequence in zip(tables, sequences, strict=True):
            table[: len(sequence.block_ids)] = sequence.block_ids
        records = np.concatenate([sequence.record for sequence in sequences])
        computed = [
            guess.sequence.num_computed - guess.sequence.start + max(0, len(guess.token_ids) - 1)
            for guess in guesses
        ]
        batch = StepBatch(
            token_ids=np.concatenate(rows),
            row_start=np.cumsum([0, *counts], dtype=np.int32),
            num_computed_tokens=np.array(computed, np.int32),
            num_draft_tokens=np.zeros(len(sequences), np.int32),
            sample=np.full(len(sequences), sample, np.uint8),
            block_tables=tables,
            sampling=records,
            history=_histories(guesses, records) if sample else None,
            num_output_tokens=0 if any(guess.is_rare for guess in guesses) else self._num_common,
        )
        started = perf_counter()
        out = self._backend.step(batch)
        seen = sum(count * (first + count) for count, first in zip(counts, computed, strict=True))
        self._costs.observe(len(batch.token_ids), seen, perf_counter() - started)
        return out

    def _is_rare(self, request: DraftRequest) -> bool:
        last = request.token_ids[-_LAST_TOKENS:]
        return int(np.count_nonzero(last >= self._num_common)) > _MOST_RARE

    # --- the end ----------------------------------------------------------------------------------

    def finish(self, request: DraftRequest) -> None:
        """Free the request's blocks."""
        sequence = self._sequences.pop(request.key, None)
        if sequence is not None:
            self._free_blocks += sequence.block_ids

    def close(self) -> None:
        """Give the model's memory back."""
        self._sequences.clear()
        if not self._closed:
            self._closed = True
            self._backend.close()


def _num_unread(guess: _Guess) -> int:
    return guess.request.num_tokens - guess.sequence.num_computed


def _class(chance: float) -> int:
    return min(int(chance * _NUM_CLASSES), _NUM_CLASSES - 1)


def _histories(guesses: Sequence[_Guess], records: NDArray[np.void]) -> list[Int32Array | None] | None:
    """Prompt, output and guesses of the requests that have a penalty; None where none has."""
    penalized = (
        (records["repetition_penalty"] != 1)
        | (records["presence_penalty"] != 0)
        | (records["frequency_penalty"] != 0)
    )
    if not penalized.any():
        return None
    return [
        np.concatenate([guess.request.token_ids, np.array(guess.token_ids, np.int32)]) if wanted else None
        for guess, wanted in zip(guesses, penalized.tolist(), strict=True)
    ]
