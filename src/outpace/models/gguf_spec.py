"""A ModelSpec from GGUF metadata."""

from __future__ import annotations

import numpy as np

from outpace.errors import ModelFormatError, UnsupportedModelError
from outpace.models import names
from outpace.models.architectures import (
    FAMILIES,
    MAX_CONTEXT,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCAB,
    MAX_WIDTH,
    Family,
    stretched_context,
)
from outpace.models.fields import Fields
from outpace.models.gguf import GGUFFile
from outpace.models.rope import RopeScaling, inverse_frequencies, yarn_attention_factor
from outpace.types import Float32Array, ModelSpec


def spec_from_gguf(file: GGUFFile) -> ModelSpec:
    """The spec that a GGUF file's metadata describes.

    Raises `UnsupportedModelError` for an architecture or a rope that is not run, `ModelFormatError` for
    values that make no sense.
    """
    fields = Fields(file.path, file.metadata)
    arch = fields.text("general.architecture")
    family = FAMILIES.get(arch)
    if family is None:
        raise UnsupportedModelError(
            f"{file.path}: the architecture is {arch[:60]!r}; Outpace runs {', '.join(sorted(FAMILIES))}"
        )
    if fields.integer(f"{arch}.expert_count", 0, MAX_WIDTH, 0):
        raise UnsupportedModelError(
            f"{file.path}: {arch}.expert_count: mixture-of-experts models are not run yet"
        )
    hidden = fields.integer(f"{arch}.embedding_length", 1, MAX_WIDTH)
    heads = fields.integer(f"{arch}.attention.head_count", 1, MAX_HEADS)
    kv_heads = fields.integer(f"{arch}.attention.head_count_kv", 1, heads, heads)
    if heads % kv_heads:
        raise fields.error(
            f"{arch}.attention.head_count_kv", f"is {kv_heads}, no divisor of the {heads} heads"
        )
    head_dim = _head_dim(fields, arch, hidden, heads)
    context = fields.integer(f"{arch}.context_length", 1, MAX_CONTEXT)
    scaling = _scaling(fields, arch, context)
    frequencies, attention_factor = _rope(file, fields, arch, head_dim, scaling)
    return ModelSpec(
        architecture=arch,
        vocab_size=_vocab_size(file, hidden),
        hidden_size=hidden,
        num_layers=fields.integer(f"{arch}.block_count", 1, MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.integer(f"{arch}.feed_forward_length", 1, MAX_WIDTH),
        max_context=stretched_context(context, scaling),
        norm_eps=fields.number(f"{arch}.attention.layer_norm_rms_epsilon", 0, 1),
        qk_norm=family.qk_norm,
        rope_kind=family.gguf_rope,
        rope_inv_freq=tuple(frequencies.tolist()),
        rope_attention_factor=attention_factor,
        tied_embeddings="output.weight" not in file.tensors,
        sliding_window=_sliding_window(fields, arch, family, context),
    )


def _head_dim(fields: Fields, arch: str, hidden: int, heads: int) -> int:
    key = f"{arch}.attention.key_length"
    if not fields.has(key) and hidden % heads:
        raise fields.error(
            f"{arch}.attention.head_count", f"is {heads}, no divisor of the hidden size {hidden}"
        )
    head_dim = fields.integer(key, 2, MAX_HEAD_DIM, hidden // heads)
    value_dim = fields.integer(f"{arch}.attention.value_length", 1, MAX_HEAD_DIM, head_dim)
    if value_dim != head_dim:
        raise UnsupportedModelError(
            f"{fields.path}: {arch}.attention.value_length: is {value_dim} where keys have {head_dim}; "
            "heads of two sizes are not run"
        )
    if head_dim % 2:
        raise fields.error(key, f"is {head_dim}; rotary embeddings need an even number")
    return head_dim


def _vocab_size(file: GGUFFile, hidden: int) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelFormatError(file.path, "token_embd.weight", "this tensor is missing")
    if len(embedding.shape) != 2 or embedding.shape[1] != hidden:
        raise ModelFormatError(
            file.path, "token_embd.weight", f"has the shape {embedding.shape}, not (vocabulary, {hidden})"
        )
    rows = embedding.shape[0]
    if rows > MAX_VOCAB:
        raise ModelFormatError(file.path, "token_embd.weight", f"has {rows} rows; the limit is {MAX_VOCAB}")
    return rows


def _sliding_window(fields: Fields, arch: str, family: Family, context: int) -> int:
    window = fields.integer(f"{arch}.attention.sliding_window", 0, MAX_CONTEXT, 0)
    if window >= context:  # no query sees that far
        return 0
    if window and family.window_is_opt_in:
        raise UnsupportedModelError(
            f"{fields.path}: {arch}.attention.sliding_window: a window on some layers only is not run"
        )
    return window


def _scaling(fields: Fields, arch: str, context: int) -> RopeScaling:
    prefix = f"{arch}.rope.scaling."
    kind = fields.text(prefix + "type", "none")
    if kind == "none" or not fields.has(prefix + "type"):
        old_factor = fields.number(f"{arch}.rope.scale_linear", 0, 1e6, 1.0)
        return RopeScaling(kind="linear", factor=old_factor) if old_factor != 1 else RopeScaling()
    factor = fields.number(prefix + "factor", 0, 1e6, 1.0)
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    if kind != "yarn":
        raise UnsupportedModelError(
            f"{fields.path}: {prefix}type: is {kind[:60]!r}; Outpace knows none, linear and yarn"
        )
    if fields.number(prefix + "yarn_log_multiplier", -1e-9, 1e6, 0.0) or fields.number(
        prefix + "yarn_ext_factor", -1e6, 1e6, 1.0
    ) not in (1.0, -1.0):  # -1 is llama.cpp's "not given"
        raise UnsupportedModelError(f"{fields.path}: {prefix}yarn_*: this variant of YaRN is not run")
    plain = RopeScaling(kind="yarn", factor=factor)
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_context=fields.integer(prefix + "original_context_length", 1, MAX_CONTEXT, context),
        beta_fast=fields.number(prefix + "yarn_beta_fast", 0, 1e6, plain.beta_fast),
        beta_slow=fields.number(prefix + "yarn_beta_slow", 0, 1e6, plain.beta_slow),
        attention_factor=_yarn_attention_factor(fields, prefix, plain),
    )


def _yarn_attention_factor(fields: Fields, prefix: str, scaling: RopeScaling) -> float | None:
    """llama.cpp multiplies YaRN's own factor by the file's; None where the file gives none."""
    key = next((k for k in (prefix + "yarn_attn_factor", prefix + "attn_factor") if fields.has(k)), None)
    if key is None:
        return None
    return fields.number(key, 0, 1e6) * yarn_attention_factor(scaling)


def _rope(
    file: GGUFFile, fields: Fields, arch: str, head_dim: int, scaling: RopeScaling
) -> tuple[Float32Array, float]:
    theta = fields.number(f"{arch}.rope.freq_base", 1, 1e12, 10000.0)
    rotary_dim = fields.integer(f"{arch}.rope.dimension_count", 2, head_dim, head_dim)
    if rotary_dim % 2:
        raise fields.error(f"{arch}.rope.dimension_count", f"is {rotary_dim}; it must be even")
    frequencies, attention_factor = inverse_frequencies(theta, rotary_dim, scaling)
    if names.GGUF_ROPE_FACTORS in file.tensors:
        frequencies = frequencies / _rope_factors(file, rotary_dim)
    return frequencies, attention_factor


def _rope_factors(file: GGUFFile, rotary_dim: int) -> Float32Array:
    tensor = file.tensors[names.GGUF_ROPE_FACTORS]
    if tensor.dtype != "F32" or tensor.shape != (rotary_dim // 2,):
        raise ModelFormatError(
            file.path,
            tensor.name,
            f"is {tensor.dtype} with the shape {tensor.shape}, not F32 with ({rotary_dim // 2},)",
        )
    factors = np.fromfile(tensor.path, np.dtype("<f4"), rotary_dim // 2, offset=tensor.offset)
    if len(factors) != rotary_dim // 2 or not np.all(np.isfinite(factors) & (factors > 0)):
        raise ModelFormatError(file.path, tensor.name, "holds factors that are not positive numbers")
    return factors
