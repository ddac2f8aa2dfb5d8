"""Tiny random checkpoints, made with transformers' own classes: the judge of every architecture.

`tiny_model` builds a random model, `write_safetensors` and `write_gguf` save it. Writing rounds the
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

import gguf
import numpy as np
import torch
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize as gguf_quantize
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

from tiny_tokenizer import TinyTokenizer, train_tokenizer

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

FLOAT_TYPES = ("F32", "F16", "BF16")
GGUF_QUANTS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")
"""These the gguf package cannot make, only read: their blocks are random."""

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


# --- GGUF ----------------------------------------------------------------------------------------


def write_gguf(model: PreTrainedModel, path: Path, dtype: str = "F32", output: str | None = None) -> Path:
    """Save as llama.cpp's converter does, matrices as `dtype` (the untied output as `output`, if given).

    Rounds the model's weights to what the file holds; K-quants are drawn anew, at the same spread.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, "llama" if config.model_type == "mistral" else config.model_type)
    _write_hyperparameters(writer, config)
    _write_tokenizer(writer, train_tokenizer(config.vocab_size))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            chosen = output if output and name == "lm_head.weight" else dtype
            kind = gguf.GGMLQuantizationType[chosen if weight.dim() == 2 else "F32"]
            heads = _permuted_heads(name, config)
            stored = _permute(weight.numpy(), heads) if heads else weight.numpy()
            data = _encode(np.ascontiguousarray(stored), kind)
            writer.add_tensor(_gguf_name(name), data, raw_dtype=kind)
            held = gguf_dequantize(data, kind).reshape(weight.shape)
            weight.copy_(torch.from_numpy(unpermute(held, heads) if heads else held))
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _encode(weight: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    if kind.name in K_QUANTS:
        return _random_blocks(kind, weight.shape, float(weight.std()))
    return gguf_quantize(weight, kind)


def _random_blocks(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], spread: float) -> np.ndarray:
    """Random quants and sub-scales, with super-block scales that give about the wanted spread."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(shape[0])
    blocks = random.integers(0, 256, (shape[0] * shape[1] // values, size), np.uint8)
    # The mean of d x scale x quant is d x 31.5 x q, that of the minima dmin x 31.5: they cancel.
    mean_quant = {"Q4_K": 7.5, "Q5_K": 15.5, "Q6_K": 0.0}[kind.name]
    unit = 1e-3

    def set_scales(scale: np.ndarray) -> None:
        halves = np.stack([scale, scale * mean_quant], axis=1).astype(np.float16).view(np.uint8)
        if kind.name == "Q6_K":
            blocks[:, -2:] = halves[:, :2]
        else:
            blocks[:, :4] = halves

    set_scales(np.full(len(blocks), unit))
    unit *= spread / float(gguf_dequantize(blocks, kind).std())
    set_scales(unit * random.uniform(0.5, 1.5, len(blocks)))
    return blocks.reshape(shape[0], -1)


def _permuted_heads(name: str, config: PreTrainedConfig) -> int:
    """Heads whose rows llama.cpp's converter reorders, from halves to pairs; 0 where it does not."""
    if config.model_type not in ("llama", "mistral"):
        return 0
    if "q_proj" in name:
        return config.num_attention_heads
    return config.num_key_value_heads if "k_proj" in name else 0


def _permute(weight: np.ndarray, heads: int) -> np.ndarray:
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """A q or k matrix of a GGUF file in the row order of transformers: from pairs to halves."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, inner = stem.split(".", 3)
        return f"blk.{layer}.{_GGUF_NAMES[inner]}.{suffix}"
    return f"{_GGUF_NAMES[stem]}.{suffix}"


def _write_hyperparameters(writer: gguf.GGUFWriter, config: Any) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "mistral" and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    rope = config.rope_parameters
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _llama3_factors(config: Any) -> np.ndarray:
    """What llama.cpp's converter stores: by how much each rotary frequency is divided."""
    rope = config.rope_parameters
    head_dim = config.head_dim
    base = 1.0 / rope["rope_theta"] ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for frequency in base:
        wavelength = 2 * np.pi / frequency
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.asarray(factors, np.float32)


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: TinyTokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.tokens)
    types = [gguf.TokenType.NORMAL] * len(tokenizer.tokens)
    for i in range(tokenizer.num_special):
        types[i] = gguf.TokenType.CONTROL
    for i in range(tokenizer.num_used, len(types)):
        types[i] = gguf.TokenType.UNUSED
    writer.add_token_types(types)
    writer.add_token_merges(tokenizer.merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def edit_config(directory: Path, **changes: Any) -> None:
    """Change fields of a saved config.json; None removes one."""
    path = directory / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))
