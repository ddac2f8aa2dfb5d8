"""The native extension, built from native/."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

compiler: str
"""Compiler and flags of this build."""

packed_layout: int
"""The version of the layout of packed tiles."""

class NativeError(Exception): ...
class NativeMemoryError(NativeError): ...

class Model:
    @property
    def kv_blocks(self) -> NDArray[np.uint8]: ...
    @property
    def state_blocks(self) -> NDArray[np.uint8] | None: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def packed_state(self) -> str: ...
    @property
    def packed_note(self) -> str: ...
    @property
    def isa(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def head_bytes(self) -> int: ...
    @property
    def trace(self) -> tuple[float, list[tuple[str, float, int, int]]]: ...
    def product_seconds(self) -> dict[str, float]: ...
    def set_trace(self, on: bool) -> None: ...

def load(
    spec: dict[str, Any],
    tensors: list[tuple[str, str, int, int, str, int, int]],
    options: dict[str, str | int | list[list[int]]],
    progress: Callable[[int], object] | None,
    threads_of: Model | None = None,
) -> Model: ...
def step(
    model: Model,
    token_ids: NDArray[np.int32],
    row_start: NDArray[np.int32],
    num_computed_tokens: NDArray[np.int32],
    num_draft_tokens: NDArray[np.int32],
    draft_parents: NDArray[np.int32] | None,
    sample: NDArray[np.uint8],
    block_tables: NDArray[np.int32],
    sampling: NDArray[np.uint8],
    history: Sequence[NDArray[np.int32] | None] | None,
    bias_token_ids: Sequence[NDArray[np.int32] | None] | None,
    bias_values: Sequence[NDArray[np.float32] | None] | None,
    token_masks: Sequence[NDArray[np.uint32] | None] | None,
    num_output_tokens: int,
    out_token_ids: NDArray[np.int32],
    out_num_accepted: NDArray[np.int32],
    out_logprobs: NDArray[np.float32] | None,
    out_top_token_ids: NDArray[np.int32] | None,
    out_top_logprobs: NDArray[np.float32] | None,
    out_logits: NDArray[np.float32] | None,
    out_hidden: NDArray[np.float32] | None,
    num_top: int,
    vocab_size: int,
    hidden_size: int,
) -> None: ...
def attach_head(
    model: Model,
    layers: dict[str, Any],
    tensors: list[tuple[str, str, int, int, str, int, int]],
    token_ids: NDArray[np.int32],
    options: dict[str, str | int],
) -> None: ...
def guess(
    model: Model,
    token_ids: NDArray[np.int32],
    row_start: NDArray[np.int32],
    positions: NDArray[np.int32],
    starts: NDArray[np.int32],
    block_tables: NDArray[np.int32],
    head_tables: NDArray[np.int32],
    max_tokens: NDArray[np.int32],
    sampling: NDArray[np.uint8],
    least_chances: NDArray[np.float32],
    out_token_ids: NDArray[np.int32],
    out_chances: NDArray[np.float32],
    out_num_tokens: NDArray[np.int32],
) -> None: ...
def kv_bytes_per_block(spec: dict[str, Any], options: dict[str, str]) -> int: ...
def checksum(data: NDArray[np.uint8]) -> int: ...
def split_strings(data: bytes, at: int, count: int) -> tuple[list[str], int] | None: ...
def first_bad_merge(tokens: tuple[str, ...], merges: tuple[str, ...]) -> int: ...
def read_bandwidth(num_bytes: int, num_threads: int, repeats: int = 5) -> float: ...
def int8_peak(isa: str, num_threads: int, repeats: int = 5) -> float: ...
def clock_rate(num_threads: int, repeats: int = 5) -> float: ...
def available_isas() -> list[str]: ...
def has_fast_prefill(isa: str) -> bool: ...

Guesses = list[tuple[int, list[int], list[int], list[int] | None]] | None
"""Request, token ids, classes, and parents where they branch; None: no guess for anyone."""

num_suffix_classes: int
num_edit_classes: int

class TokenIndex:
    def __init__(self, capacity: int, orders: Sequence[int]) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def num_kept(self) -> int: ...
    @property
    def ring_size(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    def append(self, token_ids: NDArray[np.int32]) -> None: ...
    def end_document(self) -> None: ...
    def set_capacity(self, capacity: int) -> None: ...

class EditCursor:
    def __init__(self, source: NDArray[np.int32], is_prompt: bool) -> None: ...

def propose_own(
    indices: list[TokenIndex], texts: list[NDArray[np.int32]], max_tokens: list[int]
) -> Guesses: ...
def propose_shared(
    indices: list[TokenIndex], texts: list[NDArray[np.int32]], max_tokens: list[int]
) -> Guesses: ...
def propose_edits(
    cursors: list[EditCursor | None],
    texts: list[NDArray[np.int32]],
    outputs: list[int],
    max_tokens: list[int],
) -> Guesses: ...
