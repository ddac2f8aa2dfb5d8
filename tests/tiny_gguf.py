"""Write a tiny model as a GGUF file, as llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize as gguf_quantize
from transformers import PreTrainedConfig, PreTrainedModel

from tiny_tokenizer import TinyTokenizer, train_tokenizer

FLOAT_TYPES = ("F32", "F16", "BF16")
GGUF_QUANTS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")
"""These the gguf package cannot make, only read: their blocks are random."""


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
