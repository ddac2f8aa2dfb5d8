"""Text that is kept to draft from: what the tests of it say, keep and ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from asking import Asking

from outpace.draft.log import TokenLog, Vocabulary
from outpace.draft.store import SharedText
from outpace.draft.suffix import SharedProposer
from outpace.types import DraftHints, DraftSharing

VOCAB = 50_000
VOCABULARY = Vocabulary(VOCAB, b"ours".ljust(32))
HEADER = len(VOCABULARY.header)


def text_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


@contextmanager
def shared(
    folder: Path | None,
    *,
    capacity: int = 1 << 16,
    sharing: DraftSharing = "scope",
    vocabulary: Vocabulary = VOCABULARY,
) -> Iterator[SharedText]:
    text = SharedText(folder, vocabulary=lambda: vocabulary, capacity=capacity, sharing=sharing)
    yield text
    text.close()


def said(tokens: Sequence[int], scope: str = "", **more: int) -> Asking:
    hints = DraftHints(scope)
    return Asking("r/0", list(tokens), hints, **{"num_prompt_tokens": len(tokens) // 2, **more})


def guessed(text: SharedText, end: Sequence[int], scope: str = "", most: int = 8) -> list[int]:
    """What follows `end` in the scope's text; waits for a log that is being read."""
    text.index(scope)
    text.flush()
    proposals = SharedProposer(text).propose([said(end, scope)], [most])
    return list(proposals[0][1].token_ids) if proposals else []


def log_with(folder: Path, *records: Sequence[int]) -> Path:
    log = TokenLog(folder / "x.tokens", VOCABULARY, 1 << 16)
    log.read()
    log.append([np.array(record, np.int32) for record in records])
    log.close()
    return folder / "x.tokens"


def read(path: Path, vocabulary: Vocabulary = VOCABULARY) -> list[list[int]]:
    log = TokenLog(path, vocabulary, 1 << 16)
    records = [record.tolist() for record in log.read()]
    log.close()
    return records
