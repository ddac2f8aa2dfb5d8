"""The native core as a Backend: C++20 kernels, its own threads, weights in huge pages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from outpace import _native
from outpace.backends.native_head import NativeDraftHead
from outpace.config import available_memory, cache_bytes_per_block
from outpace.cores import cores_to_pin
from outpace.errors import BackendError, OutOfMemoryError, UsageError
from outpace.models import packed_cache
from outpace.models.draft_head import HeadCheckpoint, open_head
from outpace.types import EngineConfig, Float32Array, Int32Array, ModelSpec, StepBatch, StepOutput, TensorRef

if TYPE_CHECKING:
    from outpace.models.checkpoint import Checkpoint
    from outpace.models.packed_cache import PackedFile

_log = logging.getLogger(__name__)


class NativeBackend:
    """Runs a checkpoint on the processor. See `outpace.types.Backend`.

    Raises `UsageError` where the machine cannot run the tier that was asked for, `BackendError` where the
    file lies about its tensors, and `OutOfMemoryError` where weights and KV cache do not fit; and as
    `open_head` does for the draft head that the config names. Attribute: `draft_head`, None without one.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig,
        *,
        progress: Callable[[int], object] | None = None,
        threads_of: NativeBackend | None = None,
    ) -> None:
        """Load the weights; `progress` is called with the bytes read so far.

        With `threads_of` it runs on that backend's threads; their steps wait for each other.
        """
        self._spec = checkpoint.spec
        self._num_blocks = config.kv_cache_bytes // cache_bytes_per_block(checkpoint.spec, config)
        self._kv_format = config.kv_format
        self._prefill = config.prefill
        _check_isa(config)
        head = _head_of(checkpoint, config)
        _check_memory(checkpoint, config, head)
        weight_bytes = checkpoint.weight_bytes(config.weight_format)
        packed = packed_cache.find(checkpoint, config.weight_format, _native.packed_layout, weight_bytes)
        options: dict[str, str | int | list[list[int]]] = {
            "num_threads": config.num_threads,
            "cores": cores_to_pin(config.num_threads) if config.pin_threads else [],
            "isa": config.isa,
            "weight_format": config.weight_format,
            "kv_format": config.kv_format,
            "prefill": config.prefill,
            "num_blocks": self._num_blocks,
            "max_rows": config.max_batch_tokens,
            "max_tree_rows": min(config.max_tree_tokens, config.max_batch_tokens),
            "packed_path": str(packed.path) if packed else "",
            "packed_key": packed.key if packed else "",
            "packed_source": str(packed.source) if packed else "",
            "packed_write": packed is not None and packed.write,
        }
        tensors = [_described(tensor) for tensor in checkpoint.tensors.values()]
        try:
            self._model: _native.Model | None = _native.load(
                asdict(self._spec),
                tensors,
                options,
                progress,
                None if threads_of is None else threads_of._loaded,
            )
        except _native.NativeMemoryError as error:
            raise OutOfMemoryError(str(error)) from error
        except _native.NativeError as error:
            raise BackendError(f"{checkpoint.path}: {error}") from error
        if packed is not None:
            _note_use(packed, self._model)
        self.draft_head: NativeDraftHead | None = None
        if head is not None:
            self.draft_head = NativeDraftHead(
                head,
                lambda: self._loaded,
                max_num_seqs=config.max_num_seqs,
                weight_format=config.weight_format,
            )

    @property
    def _loaded(self) -> _native.Model:
        if self._model is None:
            raise BackendError("the backend is closed")
        return self._model

    @property
    def spec(self) -> ModelSpec:
        """The model that it runs."""
        return self._spec

    @property
    def num_blocks(self) -> int:
        """Blocks in the KV cache."""
        return self._num_blocks

    @property
    def kv_blocks(self) -> NDArray[np.uint8]:
        """The KV cache's own memory, [num_blocks, bytes of a block]."""
        return self._loaded.kv_blocks

    @property
    def state_blocks(self) -> NDArray[np.uint8] | None:
        """The hidden states that the draft head reads, [num_blocks, bytes of a block]; None without one."""
        return self._loaded.state_blocks

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        return self._loaded.weight_bytes

    @property
    def description(self) -> Mapping[str, str | int]:
        """The tier, threads, KV format, bytes of all weights, and what the cache of packed weights did."""
        return {
            "backend": "native",
            "isa": self._loaded.isa,
            "threads": self._loaded.num_threads,
            "kv_format": self._kv_format,
            "prefill": self._prefill,
            "memory_bytes": self._loaded.memory_bytes,
            "packed_cache": self._loaded.packed_state,
            "compiler": _native.compiler,
        }

    def step(self, batch: StepBatch) -> StepOutput:
        """Run one step; the interpreter lock is released meanwhile."""
        num_requests = batch.num_requests
        width = 1 + int(batch.num_draft_tokens.max(initial=0))
        num_top = int(batch.sampling["num_logprobs"].max(initial=-1))
        output = StepOutput(
            token_ids=np.zeros((num_requests, width), np.int32),
            num_accepted=np.zeros(num_requests, np.int32),
        )
        if num_top >= 0:
            output.logprobs = np.zeros((num_requests, width), np.float32)
        if num_top > 0:
            output.top_token_ids = np.zeros((num_requests, width, num_top), np.int32)
            output.top_logprobs = np.full((num_requests, width, num_top), -np.inf, np.float32)
        if batch.want_logits:
            output.logits = np.empty((batch.num_rows, self._spec.vocab_size), np.float32)
        if batch.want_hidden:
            output.hidden = np.empty((batch.num_rows, self._spec.hidden_size), np.float32)
        bias_token_ids, bias_values = _split(batch.logit_bias)
        try:
            _native.step(
                self._loaded,
                batch.token_ids,
                batch.row_start,
                batch.num_computed_tokens,
                batch.num_draft_tokens,
                batch.draft_parents,
                batch.sample,
                batch.block_tables,
                batch.sampling.view(np.uint8),
                batch.history,
                bias_token_ids,
                bias_values,
                batch.token_masks,
                batch.num_output_tokens,
                output.token_ids,
                output.num_accepted,
                output.logprobs,
                output.top_token_ids,
                output.top_logprobs,
                output.logits,
                output.hidden,
                max(num_top, 0),
                self._spec.vocab_size,
                self._spec.hidden_size,
            )
        except _native.NativeError as error:
            raise BackendError(str(error)) from error
        return output

    def set_trace(self, on: bool) -> None:
        """Keep the times of each step's operations from now on, or no longer."""
        self._loaded.set_trace(on)

    def trace(self) -> tuple[float, list[tuple[str, float, int, int]]]:
        """Of the last step with a trace: seconds, and (operation, seconds, bytes, multiply-accumulates)."""
        return self._loaded.trace

    def product_seconds(self) -> dict[str, float]:
        """Of that step's operations: what their products take where nothing is fetched; 0: they have none."""
        return self._loaded.product_seconds()

    def close(self) -> None:
        """Give the memory and the threads back."""
        self._model = None


def _check_isa(config: EngineConfig) -> None:
    tiers = _native.available_isas()
    if config.isa not in ("auto", *tiers):
        raise UsageError(f"isa {config.isa!r} cannot run here; this machine has: auto, {', '.join(tiers)}")
    if config.prefill == "fast" and not _native.has_fast_prefill(config.isa):
        tier = config.isa if config.isa != "auto" else tiers[0]
        raise UsageError(
            f"prefill='fast' needs the tile instructions of the tier amx, and this is {tier}: leave it exact"
        )


def _head_of(checkpoint: Checkpoint, config: EngineConfig) -> HeadCheckpoint | None:
    if not config.draft_head or config.draft == "off":
        return None
    return open_head(Path(config.draft_head).expanduser(), checkpoint.spec)


def _check_memory(checkpoint: Checkpoint, config: EngineConfig, head: HeadCheckpoint | None) -> None:
    """Refuse what would end in the system killing the process."""
    weights = checkpoint.weight_bytes(config.weight_format) + (head.num_bytes if head else 0)
    needed, available = weights + config.kv_cache_bytes, available_memory()
    if needed > available:
        raise OutOfMemoryError(
            f"{checkpoint.path} needs {needed >> 20} MB ({weights >> 20} MB of weights and "
            f"{config.kv_cache_bytes >> 20} MB of KV cache), but {available >> 20} MB of memory are free; "
            "lower --kv-cache, take a smaller model, or free memory"
        )


def _note_use(packed: PackedFile, model: _native.Model) -> None:
    """Keep the file from going first, and say what was wrong with it."""
    if model.packed_state == "hit":
        packed.touch()
    if model.packed_note:
        _log.warning("%s", model.packed_note)


def _described(tensor: TensorRef) -> tuple[str, str, int, int, str, int, int]:
    rows, columns = tensor.shape if len(tensor.shape) == 2 else (1, tensor.shape[0])
    return tensor.name, str(tensor.path), tensor.offset, tensor.num_bytes, tensor.dtype, rows, columns


def _split(
    logit_bias: list[tuple[Int32Array, Float32Array] | None] | None,
) -> tuple[list[Int32Array | None] | None, list[Float32Array | None] | None]:
    if logit_bias is None:
        return None, None
    return [b and b[0] for b in logit_bias], [b and b[1] for b in logit_bias]
