"""Tiny random checkpoints, made with transformers' own classes: the judge of every architecture.

`tiny_model` builds a random model; `write_safetensors` and `tiny_gguf.write_gguf` save it. Writing rounds the
model's own weights to what the file then holds, so that afterwards the model in memory is the
reference for the file, to float32.

The weights are drawn so that everything shows: attention scores spread over a few units, norm weights
differ from one, biases from zero, and logits by a few nats. A wrong rope, norm, mask or scale moves such
a model far.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tiny_tokenizer import train_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

K_SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
"""Rows of K-quants come in 256s."""


def _rope(**fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"} | fields}


@dataclass(frozen=True)
class Variant:
    """A family's classes and what differs from `SIZES`."""

    config: type[PreTrainedConfig]
    model: Callable[[Any], PreTrainedModel]
    changes: dict[str, Any]


def _llama(**changes: Any) -> Variant:
    return Variant(LlamaConfig, LlamaForCausalLM, _rope() | changes)


VARIANTS: dict[str, Variant] = {
    "llama": _llama(),
    "llama-mha-odd": _llama(
        vocab_size=301, hidden_size=96, intermediate_size=160, num_attention_heads=3, num_key_value_heads=3
    ),
    # No row is a whole number of blocks of 32: for float checkpoints only.
    "llama-ragged": _llama(
        vocab_size=300,
        hidden_size=80,
        intermediate_size=200,
        num_attention_heads=5,
        num_key_value_heads=1,
    ),
    "llama-mqa-tied": _llama(num_key_value_heads=1, tie_word_embeddings=True),
    "llama-wide-heads": _llama(head_dim=64, rms_norm_eps=1e-3),
    "llama-small-heads": _llama(num_attention_heads=8, num_key_value_heads=4, **_rope(rope_theta=500.0)),
    "llama-rope-linear": _llama(**_rope(rope_type="linear", factor=4.0)),
    "llama-rope-llama3": _llama(
        head_dim=64,
        **_rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "llama-rope-yarn": _llama(
        head_dim=64,
        max_position_embeddings=256,
        **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    ),
    "llama-k": _llama(**K_SIZES),
    "qwen2": Variant(Qwen2Config, Qwen2ForCausalLM, _rope(rope_theta=1e6)),
    "qwen2-tied": Variant(
        Qwen2Config,
        Qwen2ForCausalLM,
        _rope(rope_theta=1e6)
        | {"hidden_size": 192, "num_attention_heads": 6, "tie_word_embeddings": True, "vocab_size": 333},
    ),
    "qwen2-k": Variant(Qwen2Config, Qwen2ForCausalLM, _rope(rope_theta=1e6) | K_SIZES),
    "qwen3": Variant(Qwen3Config, Qwen3ForCausalLM, _rope(rope_theta=1e6) | {"head_dim": 64}),
    "mistral-window": Variant(MistralConfig, MistralForCausalLM, _rope() | {"sliding_window": 40}),
}
"""Every family and what may differ within one, by name."""

_TORCH_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def tiny_model(variant: str, seed: int = 0) -> PreTrainedModel:
    """A random float32 model of a variant."""
    chosen = VARIANTS[variant]
    config = chosen.config(**(SIZES | chosen.changes), attn_implementation="eager")
    model = chosen.model(config).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 1.5, generator=random)
            elif name.endswith(".bias"):
                weight.normal_(0, 0.5, generator=random)
            else:
                weight.normal_(0, _spread(name, weight), generator=random)
    return model


def _spread(name: str, weight: torch.Tensor) -> float:
    """Standard deviation of a random matrix: an input of unit size gives outputs of size `gain`."""
    gain = 1.0
    if "q_proj" in name or "k_proj" in name:
        gain = 1.5
    elif "lm_head" in name or "embed_tokens" in name:
        gain = 2.0  # of the logits; an untied embedding may be as small
    return gain / weight.shape[-1] ** 0.5


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, token_ids: list[int]) -> np.ndarray:
    """Float32 logits of every position, [n, vocab]."""
    return model(torch.tensor([token_ids]), use_cache=False).logits[0].float().numpy()


# --- safetensors ---------------------------------------------------------------------------------


def write_safetensors(model: PreTrainedModel, directory: Path, dtype: str = "F32", shards: int = 1) -> Path:
    """Save as a Hugging Face directory with tokenizer.json; rounds the model's weights to `dtype`."""
    directory.mkdir(parents=True, exist_ok=True)
    kept = _TORCH_TYPES[dtype]
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():  # a tied output is not among them
            tensors[name] = weight.to(kept)
            weight.copy_(tensors[name])
    names, index = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        shard = {name: tensors[name] for name in names[i::shards]}
        save_file(shard, directory / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    if shards > 1:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    model.config.dtype = kept
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    train_tokenizer(model.config.vocab_size).save(directory)
    return directory
