"""Drive a backend by hand: batches from plain lists, and the logits of a text in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from outpace.types import BLOCK_SIZE, SAMPLING_DTYPE, Backend, StepBatch


def greedy(num_logprobs: int = -1) -> np.ndarray:
    """One sampling record that takes the likeliest token."""
    record = np.zeros(1, SAMPLING_DTYPE)
    record["top_p"] = record["repetition_penalty"] = 1
    record["num_logprobs"] = num_logprobs
    return record


def prompt(num_tokens: int) -> np.ndarray:
    """The same for a request whose first `num_tokens` tokens are its prompt."""
    record = greedy()
    record["num_prompt_tokens"] = num_tokens
    return record


@dataclass
class Rows:
    """One request's part of a step."""

    token_ids: Sequence[int]  # the new ones, drafts last
    num_computed_tokens: int
    block_table: Sequence[int]
    num_draft_tokens: int = 0
    sample: bool = True
    sampling: np.ndarray = field(default_factory=greedy)
    parents: Sequence[int] | None = None  # of the drafts; None: a chain


def blocks_for(num_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-num_tokens // BLOCK_SIZE)


def make_batch(requests: Sequence[Rows], *, want_logits: bool = False) -> StepBatch:
    """Pack requests into one step's flat arrays."""
    tables = np.full((len(requests), max(len(rows.block_table) for rows in requests)), -1, np.int32)
    for i, rows in enumerate(requests):
        tables[i, : len(rows.block_table)] = rows.block_table
    return StepBatch(
        token_ids=np.concatenate([np.asarray(rows.token_ids, np.int32) for rows in requests]),
        row_start=np.cumsum([0, *(len(rows.token_ids) for rows in requests)], dtype=np.int32),
        num_computed_tokens=np.array([rows.num_computed_tokens for rows in requests], np.int32),
        num_draft_tokens=np.array([rows.num_draft_tokens for rows in requests], np.int32),
        sample=np.array([rows.sample for rows in requests], np.uint8),
        block_tables=tables,
        sampling=np.concatenate([rows.sampling for rows in requests]),
        want_logits=want_logits,
        draft_parents=_draft_parents(requests),
    )


def _draft_parents(requests: Sequence[Rows]) -> np.ndarray | None:
    if all(rows.parents is None for rows in requests):
        return None
    parents: list[int] = []
    for rows in requests:
        parents += [-7] * (len(rows.token_ids) - rows.num_draft_tokens)  # means nothing
        parents += range(-1, rows.num_draft_tokens - 1) if rows.parents is None else rows.parents
    return np.array(parents, np.int32)


def run_logits(
    backend: Backend, token_ids: Sequence[int], *, chunk: int = 128, block_table: Sequence[int] | None = None
) -> np.ndarray:
    """Logits of every position of one prompt, [n, vocab], read in chunks."""
    table = range(blocks_for(len(token_ids))) if block_table is None else block_table
    out = []
    for start in range(0, len(token_ids), chunk):
        sampling = prompt(len(token_ids))
        rows = Rows(token_ids[start : start + chunk], start, list(table), sample=False, sampling=sampling)
        logits = backend.step(make_batch([rows], want_logits=True)).logits
        assert logits is not None
        out.append(logits)
    return np.concatenate(out)
