"""A draft head on the native core: it runs beside the model, on its threads and its hidden states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from outpace import _native
from outpace.errors import BackendError, OutOfMemoryError
from outpace.models.draft_head import HeadCheckpoint
from outpace.types import BLOCK_SIZE, HeadBatch, HeadOutput, WeightFormat

__all__ = ["HEAD_CONTEXT", "NativeDraftHead"]

HEAD_CONTEXT = 1024
"""Tokens of a request that the head holds at most, guesses included."""

_MOST_REQUESTS = 16  # for which it has memory; more go without it


class NativeDraftHead:
    """See `outpace.types.DraftHead`. Attached to a loaded model before its first step; it ends with it."""

    def __init__(
        self,
        checkpoint: HeadCheckpoint,
        model: Callable[[], _native.Model],
        *,
        max_num_seqs: int,
        weight_format: WeightFormat,
    ) -> None:
        """`model` gives the model, and raises once it is closed.

        The head's matrices become 8-bit blocks, unless they have fewer bits; 4-bit ones where
        `weight_format`, the model's, says so.
        """
        self.context = HEAD_CONTEXT
        self.num_blocks = HEAD_CONTEXT // BLOCK_SIZE * min(max_num_seqs, _MOST_REQUESTS)
        self._model = model
        options: dict[str, str | int] = {
            "weight_format": "q4_0" if weight_format == "q4_0" else "q8_0",
            "num_blocks": self.num_blocks,
        }
        tensors = [
            (
                tensor.name,
                str(tensor.path),
                tensor.offset,
                tensor.num_bytes,
                tensor.dtype,
                *(tensor.shape if len(tensor.shape) == 2 else (1, tensor.shape[0])),
            )
            for tensor in checkpoint.tensors.values()
        ]
        try:
            _native.attach_head(model(), asdict(checkpoint.spec), tensors, checkpoint.token_ids, options)
        except _native.NativeMemoryError as error:
            raise OutOfMemoryError(str(error)) from error
        except _native.NativeError as error:
            raise BackendError(f"{checkpoint.path}: {error}") from error
        self.weight_bytes = model().head_bytes

    def guess(self, batch: HeadBatch) -> HeadOutput:
        """Read and guess; the interpreter lock is released meanwhile."""
        num_requests, width = len(batch.positions), int(batch.max_tokens.max())
        output = HeadOutput(
            token_ids=np.zeros((num_requests, width), np.int32),
            chances=np.zeros((num_requests, width), np.float32),
            num_tokens=np.zeros(num_requests, np.int32),
        )
        try:
            _native.guess(
                self._model(),
                batch.token_ids,
                batch.row_start,
                batch.positions,
                batch.starts,
                batch.block_tables,
                batch.head_block_tables,
                batch.max_tokens,
                batch.sampling.view(np.uint8),
                batch.least_chances,
                output.token_ids,
                output.chances,
                output.num_tokens,
            )
        except _native.NativeError as error:
            raise BackendError(str(error)) from error
        return output
