"""A trained draft head on disk: a folder with config.json and model.safetensors, made for one model.

config.json: `format` ("outpace-draft-head") and `version` (1); `target`, the model it was trained on:
`architecture`, `hidden_size`, `num_layers`, `vocab_size`; the head's own `num_layers`, `num_heads`,
`num_kv_heads`, `head_dim`, `intermediate_size`, `rope_theta` (rotating halves), `norm_eps` and
`draft_vocab_size`.

Tensors, matrices as (outputs, inputs): `fc` [hidden, 2 hidden] over a token's embedding and the model's final
hidden state, after its output norm, at the token before; `layers.{i}.` `attn_norm q k v o ffn_norm gate up
down` as in `outpace.models.names`; `output_norm`; `output` [draft_vocab, hidden]; `draft_to_target`
[draft_vocab], int32, the model's token that each row of `output` stands for, ascending.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from outpace.errors import ModelFormatError, UsageError
from outpace.models.architectures import MAX_HEAD_DIM, MAX_HEADS, MAX_WIDTH, ExpectedTensor
from outpace.models.fields import Fields
from outpace.models.ggml_types import FLOAT_DTYPES
from outpace.models.json_file import read_object
from outpace.models.rope import RopeScaling, inverse_frequencies
from outpace.models.safetensors import SINGLE_NAME, SafetensorsTensor, read_safetensors
from outpace.types import Int32Array, ModelSpec, TensorRef

__all__ = ["FORMAT", "VERSION", "HeadCheckpoint", "open_head"]

FORMAT = "outpace-draft-head"
VERSION = 1

_CONFIG_NAME = "config.json"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_LAYERS = 8  # more is a draft model
_TOKENS = "draft_to_target"


@dataclass(frozen=True, slots=True)
class HeadCheckpoint:
    """A draft head whose header is read and checked, its weights are not."""

    path: Path
    spec: ModelSpec  # its layers, as those of a model whose vocabulary is `token_ids`
    tensors: Mapping[str, TensorRef]
    token_ids: Int32Array  # [spec.vocab_size] ascending: the model's tokens that it can guess

    @property
    def num_bytes(self) -> int:
        """Bytes of all its weights on disk."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def open_head(folder: Path, target: ModelSpec) -> HeadCheckpoint:
    """Open the head in a folder, for a model.

    Raises `UsageError` where it was trained for another model, `ModelNotFoundError` where a file is missing,
    `ModelFormatError` (naming file and field) where one is damaged.
    """
    path = folder / _CONFIG_NAME
    fields = Fields(path, read_object(path, _MAX_CONFIG_BYTES))
    if fields.raw("format") != FORMAT:
        raise UsageError(
            f"draft_head: {folder} is no draft head: its {_CONFIG_NAME} has no format {FORMAT!r}"
        )
    if fields.raw("version") != VERSION:
        raise fields.error(
            "version", f"is {fields.raw('version')!a}, and this Outpace reads version {VERSION}"
        )
    _check_target(folder, fields, target)
    spec = _spec(fields, target)
    found = read_safetensors(folder / SINGLE_NAME)
    token_ids = _token_ids(found.pop(_TOKENS, None), folder / SINGLE_NAME, spec, target)
    return HeadCheckpoint(folder, spec, _tensors(folder / SINGLE_NAME, spec, found), token_ids)


def _check_target(folder: Path, fields: Fields, target: ModelSpec) -> None:
    made_for = fields.section("target")
    if made_for is None:
        raise fields.error("target", "is missing")
    for name in ("architecture", "hidden_size", "num_layers", "vocab_size"):
        theirs, ours = made_for.raw(name), getattr(target, name)
        if theirs != ours:
            raise UsageError(
                f"draft_head: {folder} was trained for another model: {name} is {theirs!a} there, and "
                f"{ours!a} here; take a head for this model, or name none"
            )


def _spec(fields: Fields, target: ModelSpec) -> ModelSpec:
    heads = fields.integer("num_heads", 1, MAX_HEADS)
    kv_heads = fields.integer("num_kv_heads", 1, heads)
    if heads % kv_heads:
        raise fields.error("num_kv_heads", f"is {kv_heads}, no divisor of the {heads} heads")
    head_dim = fields.integer("head_dim", 2, MAX_HEAD_DIM)
    if head_dim % 2:
        raise fields.error("head_dim", f"is {head_dim}; rotary embeddings need an even number")
    frequencies, _ = inverse_frequencies(fields.number("rope_theta", 0, 1e12), head_dim, RopeScaling())
    return ModelSpec(
        architecture="draft head",
        vocab_size=fields.integer("draft_vocab_size", 1, target.vocab_size),
        hidden_size=target.hidden_size,
        num_layers=fields.integer("num_layers", 1, _MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size", 1, MAX_WIDTH),
        max_context=target.max_context,
        norm_eps=fields.number("norm_eps", 0, 1),
        rope_kind="half",
        rope_inv_freq=tuple(frequencies.tolist()),
    )


def _expected(spec: ModelSpec) -> Iterator[ExpectedTensor]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    yield ExpectedTensor("fc", (hidden, 2 * hidden))
    for i in range(spec.num_layers):
        layer = f"layers.{i}."
        yield ExpectedTensor(layer + "attn_norm", (hidden,))
        yield ExpectedTensor(layer + "q", (queries, hidden))
        yield ExpectedTensor(layer + "k", (keys, hidden))
        yield ExpectedTensor(layer + "v", (keys, hidden))
        yield ExpectedTensor(layer + "o", (hidden, queries))
        yield ExpectedTensor(layer + "ffn_norm", (hidden,))
        yield ExpectedTensor(layer + "gate", (inner, hidden))
        yield ExpectedTensor(layer + "up", (inner, hidden))
        yield ExpectedTensor(layer + "down", (hidden, inner))
    yield ExpectedTensor("output_norm", (hidden,))
    yield ExpectedTensor("output", (spec.vocab_size, hidden))


def _tensors(path: Path, spec: ModelSpec, found: Mapping[str, SafetensorsTensor]) -> dict[str, TensorRef]:
    """Every tensor that the spec asks for, none beyond."""
    tensors: dict[str, TensorRef] = {}
    for need in _expected(spec):
        tensor = found.get(need.name)
        if tensor is None:
            raise ModelFormatError(path, need.name, "this tensor is missing")
        if tensor.shape != need.shape:
            raise ModelFormatError(path, need.name, f"has the shape {tensor.shape}, not {need.shape}")
        if tensor.dtype not in FLOAT_DTYPES:
            raise ModelFormatError(
                path, need.name, f"has the type {tensor.dtype}, none of {', '.join(sorted(FLOAT_DTYPES))}"
            )
        tensors[need.name] = TensorRef(
            need.name, tensor.path, tensor.offset, tensor.num_bytes, tensor.dtype, tensor.shape
        )
    for name in found:
        if name not in tensors:
            raise ModelFormatError(path, name, "a draft head has no such tensor")
    return tensors


def _token_ids(
    tensor: SafetensorsTensor | None, path: Path, spec: ModelSpec, target: ModelSpec
) -> Int32Array:
    if tensor is None:
        raise ModelFormatError(path, _TOKENS, "this tensor is missing")
    if tensor.dtype != "I32" or tensor.shape != (spec.vocab_size,):
        raise ModelFormatError(
            path, _TOKENS, f"is {tensor.dtype} {tensor.shape}, not I32 {(spec.vocab_size,)}"
        )
    with path.open("rb") as file:
        file.seek(tensor.offset)
        token_ids = np.frombuffer(file.read(tensor.num_bytes), "<i4").astype(np.int32)
    if token_ids[0] < 0 or token_ids[-1] >= target.vocab_size or bool((np.diff(token_ids) <= 0).any()):
        raise ModelFormatError(path, _TOKENS, f"is not ascending from 0 to {target.vocab_size - 1}")
    return token_ids
