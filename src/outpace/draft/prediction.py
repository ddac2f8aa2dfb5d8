"""Guesses from a text that the output rewrites: a prediction that came with the request, or its prompt.

`native/edit_cursor.h` follows the source and finds its place again after insertions, deletions and changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from outpace import _native
from outpace.draft.proposer import Proposal
from outpace.draft.suffix import as_proposals
from outpace.types import DraftRequest

__all__ = ["EditProposer"]

_RUN_PRIORS = tuple(min(0.97, 0.5 + 0.05 * degree) for degree in range(12))
_WAY_PRIORS = (0.6, 0.5, 0.35, 0.3, 0.15)  # three, two, one of the last tokens occur; substituted; inserted
_PRIORS = _RUN_PRIORS + _WAY_PRIORS * 4
assert len(_PRIORS) == _native.num_edit_classes


class EditProposer:
    """Follows a predicted output, or the part of the prompt that is rewritten; a `draft.proposer.Proposer`.

    There are two of them: `predicted` looks at requests that came with a prediction, the other at all others.
    """

    priors: Sequence[float] = _PRIORS

    def __init__(self, *, predicted: bool) -> None:
        self.name = "prediction" if predicted else "edit"
        self._predicted = predicted
        self._cursors: dict[str, _native.EditCursor | None] = {}

    def propose(
        self, requests: Sequence[DraftRequest], max_tokens: Sequence[int]
    ) -> Sequence[tuple[int, Proposal]]:
        """See `outpace.draft.proposer.Proposer`."""
        cursors = [self._cursor(request) for request in requests]
        if not any(cursors):
            return ()
        texts = [request.token_ids for request in requests]
        outputs = [request.num_prompt_tokens for request in requests]
        return as_proposals(_native.propose_edits(cursors, texts, outputs, list(max_tokens)))

    def _cursor(self, request: DraftRequest) -> _native.EditCursor | None:
        key = request.key
        if key not in self._cursors:
            self._cursors[key] = self._open(request)
        return self._cursors[key]

    def _open(self, request: DraftRequest) -> _native.EditCursor | None:
        prediction = request.hints.prediction
        if self._predicted != bool(prediction):
            return None
        if self._predicted:
            return _native.EditCursor(np.asarray(prediction, np.int32), is_prompt=False)
        return _native.EditCursor(request.token_ids[: request.num_prompt_tokens], is_prompt=True)

    def finish(self, request: DraftRequest) -> None:
        """Drop the request's cursor."""
        self._cursors.pop(request.key, None)

    def close(self) -> None:
        """Nothing is kept."""
        self._cursors.clear()
