"""What a model is: the numbers of its architecture, and where its tensors lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RopeKind = Literal["none", "interleaved", "half"]
"""`interleaved` rotates pairs (2i, 2i+1), `half` rotates pairs (i, i + d/2) (GPT-NeoX style)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """All that the generic decoder forward needs to know of an architecture.

    A new architecture is a page in `outpace.models.architectures` that fills one of these in.
    """

    architecture: str  # the family's name, as in GGUF: "llama", "qwen2", ...
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_context: int  # tokens, as the model states it
    norm_eps: float
    qk_norm: bool = False  # RMS norm of each query and key head (Qwen3)
    rope_kind: RopeKind = "half"
    rope_inv_freq: tuple[float, ...] = ()  # [rotary_dim / 2], radians per token, scaling applied
    rope_attention_factor: float = 1.0  # multiplies cos and sin (YaRN)
    attention_scale: float = 0.0  # 0: 1 / sqrt(head_dim)
    activation: Literal["silu", "gelu_tanh"] = "silu"
    tied_embeddings: bool = False
    sliding_window: int = 0  # tokens that a query sees, itself included; 0: all
    attention_softcap: float = 0.0  # 0: off
    logit_softcap: float = 0.0  # 0: off
    embedding_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where one tensor's bytes lie on disk. Nothing is read before a backend asks for it."""

    name: str  # canonical, see `outpace.models.names`: "embed", "layers.0.q", "output_norm", ...
    path: Path
    offset: int  # bytes from the start of the file
    num_bytes: int
    dtype: str  # ggml's name: "F32", "F16", "BF16", "Q4_K", ...
    shape: tuple[int, ...]  # (rows, columns) = (outputs, inputs), or (elements,)
