"""A ModelSpec from a transformers config.json, with transformers' own defaults where it is silent."""

from __future__ import annotations

from pathlib import Path

from outpace.errors import UnsupportedModelError
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
from outpace.models.json_file import read_object
from outpace.models.rope import RopeScaling, inverse_frequencies
from outpace.types import ModelSpec

MAX_CONFIG_BYTES = 1 << 20

# Settings that change the arithmetic and that no spec expresses: field -> the one value that is run.
_ONLY = {"hidden_act": "silu", "mlp_bias": False, "partial_rotary_factor": 1.0}


def spec_from_config(path: Path, has_output: bool) -> ModelSpec:
    """The spec that a config.json describes.

    `has_output` says whether the checkpoint has an output matrix of its own: it decides where
    `tie_word_embeddings` is absent. Raises `UnsupportedModelError` for what is not run,
    `ModelFormatError` for values that make no sense, `ModelNotFoundError` where there is no file.
    """
    fields = Fields(path, read_object(path, MAX_CONFIG_BYTES))
    family = _family(fields)
    hidden = fields.integer("hidden_size", 1, MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    kv_heads = fields.integer("num_key_value_heads", 1, heads, heads)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"is {kv_heads}, no divisor of the {heads} heads")
    head_dim = _head_dim(fields, family, hidden, heads)
    num_layers = fields.integer("num_hidden_layers", 1, MAX_LAYERS)
    context = fields.integer("max_position_embeddings", 1, MAX_CONTEXT, family.default_context)
    theta, scaling = _rope(fields, context)
    frequencies, attention_factor = inverse_frequencies(theta, head_dim, scaling)
    return ModelSpec(
        architecture=family.name,
        vocab_size=fields.integer("vocab_size", 1, MAX_VOCAB),
        hidden_size=hidden,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size", 1, MAX_WIDTH),
        max_context=stretched_context(context, scaling),
        norm_eps=fields.number("rms_norm_eps", 0, 1, 1e-6),
        qk_norm=family.qk_norm,
        rope_kind="half",
        rope_inv_freq=tuple(frequencies.tolist()),
        rope_attention_factor=attention_factor,
        tied_embeddings=fields.flag("tie_word_embeddings", not has_output),
        sliding_window=_sliding_window(fields, family, num_layers),
    )


def _family(fields: Fields) -> Family:
    name = fields.text("model_type")
    family = FAMILIES.get(name)
    if family is None:
        raise UnsupportedModelError(
            f"{fields.path}: model_type: is {name[:60]!r}; Outpace runs {', '.join(sorted(FAMILIES))}"
        )
    if fields.has("quantization_config"):
        raise UnsupportedModelError(
            f"{fields.path}: quantization_config: quantized safetensors are not run; take its GGUF file, "
            "or the unquantized checkpoint with --weight-format"
        )
    for key, value in _ONLY.items():
        got = fields.raw(key)
        if got is not None and got != value:
            raise UnsupportedModelError(
                f"{fields.path}: {key}: is {str(got)[:60]!r}; Outpace runs {value!r} only"
            )
    return family


def _head_dim(fields: Fields, family: Family, hidden: int, heads: int) -> int:
    if not fields.has("head_dim") and not family.default_head_dim and hidden % heads:
        raise fields.error("num_attention_heads", f"is {heads}, no divisor of the hidden size {hidden}")
    head_dim = fields.integer("head_dim", 2, MAX_HEAD_DIM, family.default_head_dim or hidden // heads)
    if head_dim % 2:
        raise fields.error("head_dim", f"is {head_dim}; rotary embeddings need an even number")
    return head_dim


def _sliding_window(fields: Fields, family: Family, num_layers: int) -> int:
    """Tokens that a query sees; 0 for all. A window that only some layers have is not run."""
    layer_types = set(fields.texts("layer_types")) if fields.has("layer_types") else set[str]()
    if family.window_is_opt_in:
        if not fields.flag("use_sliding_window", False):
            layer_types.discard("full_attention")
            if layer_types:
                raise _mixed_window(fields)
            return 0
        window = fields.integer("sliding_window", 1, MAX_CONTEXT, 4096)
        first = fields.integer("max_window_layers", 0, 1 << 20, 28)
        layer_types = layer_types or {
            "sliding_attention" if i >= first else "full_attention" for i in (0, num_layers - 1)
        }
        if len(layer_types) > 1:
            raise _mixed_window(fields)
        return window if "sliding_attention" in layer_types else 0
    if layer_types - {"full_attention"} and len(layer_types) > 1:
        raise _mixed_window(fields)
    if not family.default_window or fields.is_null("sliding_window"):
        return 0
    return fields.integer("sliding_window", 1, MAX_CONTEXT, family.default_window)


def _mixed_window(fields: Fields) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{fields.path}: layer_types: a sliding window on some layers only is not run"
    )


def _rope(fields: Fields, context: int) -> tuple[float, RopeScaling]:
    """Theta and the scaling, from `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta`."""
    section = fields.section("rope_parameters") or fields.section("rope_scaling")
    theta = fields.number("rope_theta", 1, 1e12, 10000.0)
    if section is None:
        return theta, RopeScaling()
    theta = section.number("rope_theta", 1, 1e12, theta)
    partial = section.number("partial_rotary_factor", 0, 1, 1.0)
    kind = section.text("rope_type", section.text("type", "default"))
    if kind not in ("default", "linear", "llama3", "yarn") or partial != 1:
        raise UnsupportedModelError(
            f"{fields.path}: rope: the type is {kind[:60]!r} over {partial:g} of a head; "
            "Outpace knows default, linear, llama3 and yarn over the whole of it"
        )
    if kind == "default":
        return theta, RopeScaling()
    return theta, _scaling(section, kind, context)


def _scaling(section: Fields, kind: str, context: int) -> RopeScaling:
    original = section.integer("original_max_position_embeddings", 1, MAX_CONTEXT, context)
    # YaRN's factor may be left out; transformers then takes the ratio of the two contexts.
    default_factor = context / original if kind == "yarn" else None
    factor = section.number("factor", 0, 1e6, default_factor)
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    if kind == "llama3":
        low = section.number("low_freq_factor", 0, 1e6)
        high = section.number("high_freq_factor", 0, 1e6)
        if high <= low:
            raise section.error("high_freq_factor", f"is {high:g}, not above low_freq_factor, {low:g}")
        return RopeScaling(
            kind="llama3",
            factor=factor,
            original_context=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    given = section.has("attention_factor")
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_context=original,
        beta_fast=section.number("beta_fast", 0, 1e6, 32.0),
        beta_slow=section.number("beta_slow", 0, 1e6, 1.0),
        truncate=section.flag("truncate", True),
        attention_factor=section.number("attention_factor", 0, 1e6) if given else None,
        mscale=section.number("mscale", -1e-9, 1e6, 0.0),
        mscale_all_dim=section.number("mscale_all_dim", -1e-9, 1e6, 0.0),
    )
