"""The architectures that Outpace runs, and the tensors that each needs.

A family is what its models have in common; a model's own sizes come from its file
(`outpace.models.gguf_spec`, `outpace.models.huggingface_spec`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from outpace.models.rope import RopeScaling
from outpace.types import ModelSpec, RopeKind

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20  # hidden and intermediate size
MAX_HEADS = 4096
MAX_HEAD_DIM = 1024
MAX_VOCAB = 1 << 24
MAX_CONTEXT = 1 << 27  # tokens

Presence = Literal["never", "optional", "always"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the models of an architecture have in common."""

    name: str  # `general.architecture` in GGUF and `model_type` in config.json
    gguf_rope: RopeKind  # llama.cpp's converter permutes the q and k rows of Llama models, not of Qwen's
    qk_norm: bool = False
    qkv_bias: Presence = "never"
    # What transformers assumes where config.json is silent.
    default_context: int = 32768
    default_head_dim: int = 0  # 0: hidden_size / num_attention_heads
    default_window: int = 0  # tokens; 0: all
    window_is_opt_in: bool = False  # `use_sliding_window` must be set, and it holds from a layer on


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(name="llama", gguf_rope="interleaved", qkv_bias="optional", default_context=2048),
        Family(name="mistral", gguf_rope="interleaved", default_context=131072, default_window=4096),
        Family(name="qwen2", gguf_rope="half", qkv_bias="always", window_is_opt_in=True),
        Family(name="qwen3", gguf_rope="half", qk_norm=True, default_head_dim=128, window_is_opt_in=True),
    )
}
"""The families by name."""


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """A tensor that a spec asks for."""

    name: str  # canonical
    shape: tuple[int, ...]
    optional: bool = False


def expected_tensors(spec: ModelSpec) -> Iterator[ExpectedTensor]:
    """Every tensor that the spec's forward pass reads, layer by layer."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    bias = FAMILIES[spec.architecture].qkv_bias
    yield ExpectedTensor("embed", (spec.vocab_size, hidden))
    yield ExpectedTensor("output_norm", (hidden,))
    if not spec.tied_embeddings:
        yield ExpectedTensor("output", (spec.vocab_size, hidden))
    for i in range(spec.num_layers):
        layer = f"layers.{i}."
        yield ExpectedTensor(layer + "attn_norm", (hidden,))
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield ExpectedTensor(layer + name, (rows, hidden))
            if bias != "never":
                yield ExpectedTensor(f"{layer}{name}_bias", (rows,), optional=bias == "optional")
        if spec.qk_norm:
            yield ExpectedTensor(layer + "q_norm", (spec.head_dim,))
            yield ExpectedTensor(layer + "k_norm", (spec.head_dim,))
        yield ExpectedTensor(layer + "o", (hidden, queries))
        yield ExpectedTensor(layer + "ffn_norm", (hidden,))
        yield ExpectedTensor(layer + "gate", (inner, hidden))
        yield ExpectedTensor(layer + "up", (inner, hidden))
        yield ExpectedTensor(layer + "down", (hidden, inner))


def stretched_context(context: int, scaling: RopeScaling) -> int:
    """The context in tokens: YaRN's stretch counts, which configurations leave out of the stated length."""
    stretch = scaling.factor * scaling.original_context if scaling.kind == "yarn" else 0
    return min(max(context, int(stretch)), MAX_CONTEXT)
