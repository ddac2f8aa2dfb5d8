"""The oracle: the generic decoder forward in plain float32 torch, on the same paged contract.

It exists to be read and believed, not to be fast: weights are dequantized to float32, the KV cache is
float32, each op is a line. Like the native core it is row-wise, so a row's result does not depend on
the rows beside it: matrices multiply fixed tiles of rows (`_TILE_ROWS`), and attention runs query by
query. It knows no sampling; that is `reference_sampler`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.backends.reference_sampler import Sampled, draft_parents, verify
from outpace.errors import BackendError, OutOfMemoryError, UsageError
from outpace.models.checkpoint import Checkpoint
from outpace.models.dequantize import read_tensor
from outpace.types import BLOCK_SIZE, EngineConfig, ModelSpec, StepBatch, StepOutput

try:
    import torch
except ImportError as error:
    raise UsageError("the torch backend needs torch: pip install 'outpace[torch]'") from error

from torch import Tensor

_DEFAULT_KV_CACHE_BYTES = 256 << 20

# A matrix product always takes this many rows (zeros fill the last tile): the same shape takes the
# same path through the BLAS, hence the same order of additions, however many rows the step has.
_TILE_ROWS = 32


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where the rows of a step stand."""

    positions: Tensor  # [rows] int64
    slots: Tensor  # [rows] int64, each row's place in the KV cache
    contexts: list[
        tuple[int, int, Tensor]
    ]  # first row, past row, slots of positions 0... as these rows see it


class TorchBackend:
    """`Backend` in float32 torch on the CPU; see `outpace.types.Backend` for the contract.

    Raises `OutOfMemoryError` where the KV budget holds no block, `UsageError` where the config asks to
    quantize weights, and the errors of `read_tensor`.
    """

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        """Dequantize the checkpoint's weights and reserve the KV cache."""
        if config.weight_format != "keep":
            raise UsageError("the torch backend runs weights as float32: leave weight_format at 'keep'")
        self._spec = spec = checkpoint.spec
        block_bytes = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * BLOCK_SIZE * 4
        budget = config.kv_cache_bytes or _DEFAULT_KV_CACHE_BYTES
        self._num_blocks = budget // block_bytes
        if self._num_blocks == 0:
            raise OutOfMemoryError(
                f"kv_cache_bytes is {budget}, but one block of the float32 KV cache takes {block_bytes}; "
                "raise it"
            )
        self._weights = {name: torch.as_tensor(read_tensor(ref)) for name, ref in checkpoint.tensors.items()}
        # numpy's zeros cost no memory before they are written.
        shape = (spec.num_layers, 2, self._num_blocks * BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
        self._kv_cache = torch.as_tensor(np.zeros(shape, np.float32))
        self._inv_freq = torch.tensor(spec.rope_inv_freq, dtype=torch.float32)

    @property
    def spec(self) -> ModelSpec:
        """The model that it runs."""
        return self._spec

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""
        return self._num_blocks

    @property
    def kv_blocks(self) -> None:
        """A block lies in many places: keys and values of each layer have tensors of their own."""
        return

    @property
    def state_blocks(self) -> None:
        """Nothing else is kept."""
        return

    @property
    def weight_bytes(self) -> int:
        """Bytes of float32 weights that one decode step reads."""
        read = (
            weight.nbytes
            for name, weight in self._weights.items()
            if name != "embed" or self._spec.tied_embeddings
        )
        return sum(read)

    @property
    def description(self) -> Mapping[str, str | int]:
        """What a report needs."""
        return {
            "backend": "torch",
            "isa": "torch",
            "num_threads": torch.get_num_threads(),
            "kv_format": "f32",
        }

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        self._weights = {}
        self._kv_cache = torch.empty(0)

    def step(self, batch: StepBatch) -> StepOutput:
        """Run one step. Raises `BackendError` where the batch names tokens or blocks that are not there."""
        if not self._weights:
            raise BackendError("the backend is closed")
        rows = self._locate(batch)
        with torch.inference_mode():
            hidden = self._forward(batch.token_ids, rows)
            wanted = range(batch.num_rows) if batch.want_logits else _sampled_rows(batch)
            logits = self._logits(hidden[list(wanted)]).numpy()
        sampled = Sampled.empty(batch)
        place = {row: i for i, row in enumerate(wanted)}
        for request in np.flatnonzero(batch.sample).tolist():
            past = place[int(batch.row_start[request + 1]) - 1] + 1
            num_drafts = int(batch.num_draft_tokens[request])
            path = verify(sampled, request, logits[past - 1 - num_drafts : past])
            self._move_accepted(rows, int(batch.row_start[request + 1]) - num_drafts, path)
        output = sampled.output(logits if batch.want_logits else None)
        output.hidden = hidden.numpy() if batch.want_hidden else None
        return output

    # --- the forward pass -----------------------------------------------------------------------

    def _forward(self, token_ids: NDArray[np.int32], rows: _Rows) -> Tensor:
        """Hidden states [rows, hidden] after the last norm; fills the rows' slots of the KV cache."""
        spec, eps = self._spec, self._spec.norm_eps
        hidden = self._weights["embed"][torch.as_tensor(token_ids.astype(np.int64))] * spec.embedding_scale
        angles = rows.positions[:, None].float() * self._inv_freq  # [rows, rotary_dim / 2]
        cos = angles.cos() * spec.rope_attention_factor
        sin = angles.sin() * spec.rope_attention_factor
        for layer in range(spec.num_layers):
            prefix = f"layers.{layer}."
            normed = _rms_norm(hidden, self._weights[prefix + "attn_norm"], eps)
            hidden = hidden + self._attention(layer, normed, rows, cos, sin)
            normed = _rms_norm(hidden, self._weights[prefix + "ffn_norm"], eps)
            hidden = hidden + self._feed_forward(prefix, normed)
        return _rms_norm(hidden, self._weights["output_norm"], eps)

    def _attention(self, layer: int, normed: Tensor, rows: _Rows, cos: Tensor, sin: Tensor) -> Tensor:
        """Self-attention of normed rows [rows, hidden] over the KV cache, [rows, hidden]."""
        spec, prefix = self._spec, f"layers.{layer}."
        query = self._project(prefix + "q", normed, spec.num_heads)
        key = self._project(prefix + "k", normed, spec.num_kv_heads)
        value = self._project(prefix + "v", normed, spec.num_kv_heads)
        if spec.qk_norm:
            query = _rms_norm(query, self._weights[prefix + "q_norm"], spec.norm_eps)
            key = _rms_norm(key, self._weights[prefix + "k_norm"], spec.norm_eps)
        query = _rotate(query, cos, sin, spec)
        keys, values = self._kv_cache[layer, 0], self._kv_cache[layer, 1]  # [slots, kv_heads, head_dim]
        keys[rows.slots] = _rotate(key, cos, sin, spec)
        values[rows.slots] = value

        out = torch.empty_like(query)
        for first_row, past_row, context in rows.contexts:
            request_keys, request_values = keys[context], values[context]
            for row in range(first_row, past_row):
                seen = _visible(int(rows.positions[row]), spec)
                out[row] = _attend(query[row], request_keys[seen], request_values[seen], spec)
        return _linear(out.flatten(1), self._weights[prefix + "o"])

    def _project(self, name: str, rows: Tensor, num_heads: int) -> Tensor:
        """A linear map with its bias, if it has one, to [rows, heads, head_dim]."""
        out = _linear(rows, self._weights[name])
        bias = self._weights.get(name + "_bias")
        if bias is not None:
            out = out + bias
        return out.view(len(rows), num_heads, self._spec.head_dim)

    def _feed_forward(self, prefix: str, normed: Tensor) -> Tensor:
        gate = _linear(normed, self._weights[prefix + "gate"])
        if self._spec.activation == "silu":
            gate = torch.nn.functional.silu(gate)
        else:
            gate = torch.nn.functional.gelu(gate, approximate="tanh")
        return _linear(gate * _linear(normed, self._weights[prefix + "up"]), self._weights[prefix + "down"])

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits [rows, vocab_size] of normed hidden states."""
        logits = _linear(hidden, self._weights["embed" if self._spec.tied_embeddings else "output"])
        return _softcap(logits, self._spec.logit_softcap)

    # --- the paged contract ---------------------------------------------------------------------

    def _locate(self, batch: StepBatch) -> _Rows:
        """Positions and slots of a batch's rows, checked."""
        if batch.num_rows and not 0 <= batch.token_ids.min() <= batch.token_ids.max() < self._spec.vocab_size:
            raise BackendError(f"a token id is outside of 0..{self._spec.vocab_size - 1}")
        positions = np.empty(batch.num_rows, np.int64)
        slots = np.empty(batch.num_rows, np.int64)
        contexts: list[tuple[int, int, Tensor]] = []
        for i in range(batch.num_requests):
            first_row, past_row = int(batch.row_start[i]), int(batch.row_start[i + 1])
            start = int(batch.num_computed_tokens[i])
            stop = start + past_row - first_row
            blocks = batch.block_tables[i, : -(-stop // BLOCK_SIZE)].astype(np.int64)
            if len(blocks) * BLOCK_SIZE < stop:
                raise BackendError(f"request {i}: its block table is too short for {stop} tokens")
            if len(blocks) and not 0 <= blocks.min() <= blocks.max() < self._num_blocks:
                raise BackendError(f"request {i}: a block id is outside of 0..{self._num_blocks - 1}")
            places = (blocks[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).reshape(-1)[:stop]
            positions[first_row:past_row] = np.arange(start, stop)
            slots[first_row:past_row] = places[start:]
            if batch.draft_parents is None:
                contexts.append((first_row, past_row, torch.as_tensor(places)))
                continue
            parents = draft_parents(batch, i)
            first_draft = past_row - len(parents)
            contexts.append((first_row, first_draft, torch.as_tensor(places)))
            paths = [places[: stop - len(parents)]]  # then one for each draft: what it sees
            for draft, parent in enumerate(parents):
                paths.append(np.append(paths[parent + 1], slots[first_draft + draft]))
                row = first_draft + draft
                positions[row] = len(paths[-1]) - 1
                contexts.append((row, row + 1, torch.as_tensor(paths[-1])))
        return _Rows(torch.as_tensor(positions), torch.as_tensor(slots), contexts)

    def _move_accepted(self, rows: _Rows, first_draft: int, path: list[int]) -> None:
        """Bring the accepted drafts' entries into the slots that a chain of them would have."""
        for depth, draft in enumerate(path):  # a draft's slot is never before the one it belongs in
            if draft != depth:
                source, target = rows.slots[first_draft + draft], rows.slots[first_draft + depth]
                self._kv_cache[:, :, target] = self._kv_cache[:, :, source]


def _sampled_rows(batch: StepBatch) -> list[int]:
    """The rows that yield a token: of each sampling request the row before the drafts, and the drafts."""
    rows: list[int] = []
    for request in np.flatnonzero(batch.sample).tolist():
        past = int(batch.row_start[request + 1])
        rows.extend(range(past - 1 - int(batch.num_draft_tokens[request]), past))
    return rows


def _linear(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [n, inputs] times weight [outputs, inputs] transposed, tile by tile."""
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % _TILE_ROWS))
    out = padded.new_empty(len(padded), len(weight))
    for start in range(0, len(padded), _TILE_ROWS):
        tile = slice(start, start + _TILE_ROWS)
        torch.matmul(padded[tile], weight.T, out=out[tile])
    return out[: len(rows)]


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last axis (arXiv:1910.07467)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, spec: ModelSpec) -> Tensor:
    """Rotary embedding (arXiv:2104.09864) of [rows, heads, head_dim]; dims past the rotary ones stay."""
    if spec.rope_kind == "none":
        return x
    half = len(spec.rope_inv_freq)
    cos, sin = cos[:, None, :], sin[:, None, :]  # [rows, 1, half]
    out = x.clone()
    if spec.rope_kind == "interleaved":
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        first, second = slice(0, half), slice(half, 2 * half)
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def _visible(position: int, spec: ModelSpec) -> slice:
    """The positions that a query sees: up to its own, within the sliding window."""
    first = max(0, position + 1 - spec.sliding_window) if spec.sliding_window else 0
    return slice(first, position + 1)


def _attend(query: Tensor, keys: Tensor, values: Tensor, spec: ModelSpec) -> Tensor:
    """One query [heads, head_dim] over [n, kv_heads, head_dim]; query heads share KV heads in groups."""
    scale = spec.attention_scale or 1.0 / math.sqrt(spec.head_dim)
    grouped = query.view(spec.num_kv_heads, -1, spec.head_dim)
    scores = grouped @ keys.permute(1, 2, 0) * scale  # [kv_heads, group, n]
    weights = torch.softmax(_softcap(scores, spec.attention_softcap), -1)
    return (weights @ values.transpose(0, 1)).view(spec.num_heads, spec.head_dim)


def _softcap(x: Tensor, cap: float) -> Tensor:
    return torch.tanh(x / cap) * cap if cap else x
