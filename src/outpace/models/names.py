"""Canonical tensor names, and the maps to them from GGUF and from Hugging Face names.

Outside the layers: `embed`, `output` (absent when the embedding is reused), `output_norm`. In layer i,
after `layers.{i}.`: `attn_norm q k v o q_bias k_bias v_bias q_norm k_norm ffn_norm gate up down`.
Matrices are (outputs, inputs), row-major.
"""

from __future__ import annotations

import re

_GGUF_TOP = {"token_embd.weight": "embed", "output.weight": "output", "output_norm.weight": "output_norm"}

_GGUF_LAYER = {
    "attn_norm.weight": "attn_norm",
    "attn_q.weight": "q",
    "attn_k.weight": "k",
    "attn_v.weight": "v",
    "attn_output.weight": "o",
    "attn_q.bias": "q_bias",
    "attn_k.bias": "k_bias",
    "attn_v.bias": "v_bias",
    "attn_q_norm.weight": "q_norm",
    "attn_k_norm.weight": "k_norm",
    "ffn_norm.weight": "ffn_norm",
    "ffn_gate.weight": "gate",
    "ffn_up.weight": "up",
    "ffn_down.weight": "down",
}

_HUGGINGFACE_TOP = {
    "model.embed_tokens.weight": "embed",
    "lm_head.weight": "output",
    "model.norm.weight": "output_norm",
}

_HUGGINGFACE_LAYER = {
    "input_layernorm.weight": "attn_norm",
    "self_attn.q_proj.weight": "q",
    "self_attn.k_proj.weight": "k",
    "self_attn.v_proj.weight": "v",
    "self_attn.o_proj.weight": "o",
    "self_attn.q_proj.bias": "q_bias",
    "self_attn.k_proj.bias": "k_bias",
    "self_attn.v_proj.bias": "v_bias",
    "self_attn.q_norm.weight": "q_norm",
    "self_attn.k_norm.weight": "k_norm",
    "post_attention_layernorm.weight": "ffn_norm",
    "mlp.gate_proj.weight": "gate",
    "mlp.up_proj.weight": "up",
    "mlp.down_proj.weight": "down",
}

GGUF_ROPE_FACTORS = "rope_freqs.weight"
"""The GGUF tensor that divides the rope's inverse frequencies (Llama 3); folded into the spec."""

# Tensors that hold nothing the spec does not say already: precomputed rope tables.
_GGUF_DERIVED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd(\.weight)?")
_HUGGINGFACE_DERIVED = re.compile(r"(model\.layers\.\d+\.self_attn|model)\.rotary_emb\.inv_freq")

_GGUF_IN_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(.+)")
_HUGGINGFACE_IN_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d{0,5})\.(.+)")


def from_gguf(name: str) -> str | None:
    """The canonical name of a GGUF tensor; None for one that Outpace does not know."""
    return _canonical(name, _GGUF_TOP, _GGUF_LAYER, _GGUF_IN_LAYER)


def from_huggingface(name: str) -> str | None:
    """The canonical name of a transformers checkpoint's tensor; None for one that Outpace does not know."""
    return _canonical(name, _HUGGINGFACE_TOP, _HUGGINGFACE_LAYER, _HUGGINGFACE_IN_LAYER)


def to_gguf(name: str) -> str:
    """The name that a canonical tensor has in a GGUF file."""
    return _original(name, _GGUF_TOP, _GGUF_LAYER, "blk.")


def to_huggingface(name: str) -> str:
    """The name that a canonical tensor has in a transformers checkpoint."""
    return _original(name, _HUGGINGFACE_TOP, _HUGGINGFACE_LAYER, "model.layers.")


def is_derived(name: str) -> bool:
    """Whether a file's tensor, by its name there, is a table that follows from the metadata."""
    return bool(_GGUF_DERIVED.fullmatch(name) or _HUGGINGFACE_DERIVED.fullmatch(name))


def _canonical(
    name: str, top: dict[str, str], layer: dict[str, str], in_layer: re.Pattern[str]
) -> str | None:
    if name in top:
        return top[name]
    match = in_layer.fullmatch(name)
    if match is None or match[2] not in layer:
        return None
    return f"layers.{match[1]}.{layer[match[2]]}"


def _original(name: str, top: dict[str, str], layer: dict[str, str], prefix: str) -> str:
    names = {canonical: original for original, canonical in (top | layer).items()}
    if not name.startswith("layers."):
        return names[name]
    _, index, rest = name.split(".", 2)
    return f"{prefix}{index}.{names[rest]}"
