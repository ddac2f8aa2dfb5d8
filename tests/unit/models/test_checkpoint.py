"""Opening checkpoints: specs against transformers' configurations, and what is refused."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_bytes as gb
import numpy as np
import pytest
from gguf_bytes import ARR, F32, I32, STR, U32, Tensor, array, entry, scalar, string
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from outpace.errors import ModelFormatError, ModelNotFoundError, OutpaceError, UnsupportedModelError
from outpace.models.checkpoint import Checkpoint, GGUFTokenizer, HFTokenizer, open_checkpoint
from outpace.models.names import from_gguf, from_huggingface, to_gguf, to_huggingface
from tiny import VARIANTS

# --- specs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["gguf", "safetensors"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_spec_is_what_transformers_computes(
    variant: str, form: str, tiny_checkpoint: Callable[..., Any]
) -> None:
    tiny = tiny_checkpoint(variant, form)
    checkpoint: Checkpoint = open_checkpoint(tiny.path)
    spec, config = checkpoint.spec, tiny.model.config
    rope = tiny.model.model.rotary_emb
    assert spec.vocab_size == config.vocab_size
    assert spec.hidden_size == config.hidden_size
    assert spec.num_layers == config.num_hidden_layers
    assert spec.num_heads == config.num_attention_heads
    assert spec.num_kv_heads == config.num_key_value_heads
    assert spec.head_dim == tiny.model.model.layers[0].self_attn.head_dim
    assert spec.intermediate_size == config.intermediate_size
    assert spec.norm_eps == pytest.approx(config.rms_norm_eps, rel=1e-6)
    assert spec.tied_embeddings == config.tie_word_embeddings
    assert spec.qk_norm == (config.model_type == "qwen3")
    assert spec.rope_kind == (
        "interleaved" if form == "gguf" and config.model_type in ("llama", "mistral") else "half"
    )
    np.testing.assert_allclose(spec.rope_inv_freq, rope.inv_freq.numpy(), rtol=4e-6)
    assert spec.rope_attention_factor == pytest.approx(rope.attention_scaling, rel=1e-6)
    if form == "safetensors":
        assert spec.sliding_window == (getattr(config, "sliding_window", None) or 0)
    shapes = {from_huggingface(name): tuple(weight.shape) for name, weight in tiny.model.named_parameters()}
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == shapes


def test_real_models(model_135m: Path, model_15b: Path) -> None:
    small, large = open_checkpoint(model_135m), open_checkpoint(model_15b)
    assert (small.spec.architecture, small.spec.rope_kind, small.spec.tied_embeddings) == (
        "llama",
        "interleaved",
        True,
    )
    assert (small.spec.num_heads, small.spec.num_kv_heads, small.spec.head_dim) == (9, 3, 64)
    assert (large.spec.architecture, large.spec.rope_kind, large.spec.tied_embeddings) == (
        "qwen2",
        "half",
        False,
    )
    assert (large.spec.max_context, large.spec.vocab_size, len(large.tensors)) == (32768, 151936, 339)
    tokenizer = large.tokenizer
    assert isinstance(tokenizer, GGUFTokenizer)
    assert (tokenizer.model, tokenizer.pre, tokenizer.eos_id, tokenizer.add_bos) == (
        "gpt2",
        "qwen2",
        151645,
        False,
    )
    assert tokenizer.merges is not None
    assert (len(tokenizer.tokens), len(tokenizer.merges)) == (151936, 151387)
    assert tokenizer.chat_template is not None


CONFIG: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def spec_of(folder: Path, **config: Any) -> Any:
    from outpace.models.huggingface_spec import spec_from_config

    path = folder / "config.json"
    path.write_text(json.dumps(CONFIG | config))
    return spec_from_config(path, has_output=True)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 123456.0},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {
            "rope_theta": 1e6,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        },
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            }
        },
        {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}},
    ],
)
def test_config_json_old_and_new(model_type: str, rope: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of(tmp_path, model_type=model_type, **rope)
    config = AutoConfig.from_pretrained(tmp_path)
    kind = config.rope_parameters["rope_type"]
    head_dim = getattr(config, "head_dim", None) or 16
    assert spec.head_dim == head_dim
    if kind == "default":
        theta = config.rope_parameters["rope_theta"]
        expected = 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim)
    else:
        import torch

        expected = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))[0].numpy()
    np.testing.assert_allclose(spec.rope_inv_freq, expected, rtol=4e-6)
    assert spec.norm_eps == config.rms_norm_eps
    assert spec.sliding_window == (getattr(config, "sliding_window", None) or 0)
    assert spec.tied_embeddings is False


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, 0),
        ({"model_type": "mistral", "sliding_window": 99}, 99),
        ({"model_type": "qwen2", "sliding_window": 99}, 0),
        (
            {"model_type": "qwen2", "sliding_window": 99, "use_sliding_window": True, "max_window_layers": 0},
            99,
        ),
        (
            {"model_type": "qwen2", "sliding_window": 99, "use_sliding_window": True, "max_window_layers": 1},
            0,
        ),
        ({"model_type": "llama", "sliding_window": 99}, 0),
    ],
)
def test_sliding_window(config: dict[str, Any], window: int, tmp_path: Path) -> None:
    assert spec_of(tmp_path, **config).sliding_window == window


def test_yarn_stretches_the_context(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert spec_of(tmp_path, model_type="qwen2", rope_scaling=scaling).max_context == 16384


BAD_CONFIGS: dict[str, tuple[dict[str, Any], type[OutpaceError], str]] = {
    "no architecture": ({}, ModelFormatError, "model_type: is missing"),
    "another": (
        {"model_type": "gpt_bigcode"},
        UnsupportedModelError,
        "'gpt_bigcode'; Outpace runs llama, mistral",
    ),
    "size a string": ({"model_type": "llama", "hidden_size": "64"}, ModelFormatError, "hidden_size: is '64'"),
    "size a bool": ({"model_type": "llama", "vocab_size": True}, ModelFormatError, "vocab_size: is True"),
    "size negative": (
        {"model_type": "llama", "num_hidden_layers": -1},
        ModelFormatError,
        "num_hidden_layers: is -1",
    ),
    "size absurd": (
        {"model_type": "llama", "hidden_size": 10**40},
        ModelFormatError,
        "hidden_size: is an integer of",
    ),
    "context absurd": (
        {"model_type": "llama", "max_position_embeddings": 2**60},
        ModelFormatError,
        "max_position_embeddings",
    ),
    "kv heads": (
        {"model_type": "llama", "num_key_value_heads": 3},
        ModelFormatError,
        "no divisor of the 4 heads",
    ),
    "heads": (
        {"model_type": "llama", "num_attention_heads": 5, "num_key_value_heads": 5},
        ModelFormatError,
        "heads",
    ),
    "odd heads": ({"model_type": "llama", "head_dim": 15}, ModelFormatError, "head_dim: is 15"),
    "eps": ({"model_type": "llama", "rms_norm_eps": 0}, ModelFormatError, "rms_norm_eps"),
    "theta": ({"model_type": "llama", "rope_theta": 0}, ModelFormatError, "rope_theta"),
    "theta NaN": ({"model_type": "llama", "rope_theta": float("nan")}, ModelFormatError, "rope_theta"),
    "activation": ({"model_type": "llama", "hidden_act": "gelu"}, UnsupportedModelError, "hidden_act"),
    "quantized": (
        {"model_type": "llama", "quantization_config": {}},
        UnsupportedModelError,
        "quantization_config",
    ),
    "rope type": (
        {"model_type": "llama", "rope_scaling": {"type": "longrope"}},
        UnsupportedModelError,
        "longrope",
    ),
    "rope a list": ({"model_type": "llama", "rope_scaling": []}, ModelFormatError, "rope_scaling: is a list"),
    "rope factor": (
        {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": -1}},
        ModelFormatError,
        "rope_scaling.factor: is -1",
    ),
    "llama3 factors": (
        {
            "model_type": "llama",
            "rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1},
        },
        ModelFormatError,
        "rope_scaling.high_freq_factor",
    ),
    "mixed windows": (
        {"model_type": "qwen2", "num_hidden_layers": 4, "use_sliding_window": True, "max_window_layers": 2},
        UnsupportedModelError,
        "some layers only",
    ),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_config(name: str, tmp_path: Path) -> None:
    config, error, message = BAD_CONFIGS[name]
    with pytest.raises(error) as caught:
        spec_of(tmp_path, **config)
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"a": ' + b"[" * 50_000, b"\xff", b" " * (2 << 20)])
def test_config_that_is_no_object(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text)
    (tmp_path / "model.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"{}")
    with pytest.raises(ModelFormatError, match=r"config\.json: file"):
        open_checkpoint(tmp_path)


# --- GGUF metadata -------------------------------------------------------------------------------


def write(folder: Path, file: gb.File, name: str = "m.gguf") -> Path:
    path = folder / name
    path.write_bytes(file.to_bytes())
    return path


def with_entry(key: str, kind: int, payload: bytes) -> gb.File:
    return gb.small_file(gb.small_entries(**{key.replace(".", "__"): entry(key, kind, payload)}))


def test_gguf_yarn_and_linear(tmp_path: Path) -> None:
    def scaled(*extra: bytes) -> Checkpoint:
        entries = gb.small_entries()
        for i, item in enumerate(extra):
            entries[str(i)] = item
        return open_checkpoint(write(tmp_path, gb.small_file(entries)))

    key = "llama.rope.scaling."
    plain = scaled().spec
    linear = scaled(
        entry(key + "type", STR, string("linear")), entry(key + "factor", F32, scalar(F32, 4.0))
    ).spec
    np.testing.assert_allclose(np.array(plain.rope_inv_freq) / 4, linear.rope_inv_freq, rtol=1e-6)
    yarn = scaled(
        entry(key + "type", STR, string("yarn")),
        entry(key + "factor", F32, scalar(F32, 4.0)),
        entry(key + "original_context_length", U32, scalar(U32, 64)),
    ).spec
    assert yarn.max_context == 256
    assert yarn.rope_attention_factor == pytest.approx(0.1 * np.log(4) + 1)
    none = scaled(entry(key + "type", STR, string("none")), entry(key + "factor", F32, scalar(F32, 4.0))).spec
    assert none.rope_inv_freq == plain.rope_inv_freq


@pytest.mark.parametrize(
    ("arch", "window", "expected"),
    [("llama", 99, 99), ("llama", 128, 0), ("llama", 0, 0), ("qwen3", 4096, 0)],
)
def test_gguf_sliding_window(arch: str, window: int, expected: int, tmp_path: Path) -> None:
    entries = gb.small_entries(arch)
    entries["window"] = entry(f"{arch}.attention.sliding_window", U32, scalar(U32, window))
    tensors = gb.small_tensors()
    if arch == "qwen3":
        tensors |= {n: Tensor(n, (8,)) for n in ("blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight")}
    assert open_checkpoint(write(tmp_path, gb.small_file(entries, tensors))).spec.sliding_window == expected


def test_gguf_window_on_some_layers_is_refused(tmp_path: Path) -> None:
    entries = gb.small_entries("qwen2")
    entries["window"] = entry("qwen2.attention.sliding_window", U32, scalar(U32, 64))
    with pytest.raises(UnsupportedModelError, match="some layers only"):
        open_checkpoint(write(tmp_path, gb.small_file(entries)))


def test_gguf_rope_factors_divide_the_frequencies(tmp_path: Path) -> None:
    plain = open_checkpoint(write(tmp_path, gb.small_file())).spec
    tensors = {"rope_freqs.weight": Tensor("rope_freqs.weight", (4,))} | gb.small_tensors()
    file = gb.small_file(tensors=tensors)
    data = bytearray(file.to_bytes())
    start = len(data) - sum(-(-tensor.num_bytes() // 32) * 32 for tensor in tensors.values())
    data[start : start + 16] = struct.pack("<4f", 1, 2, 4, 8)
    path = tmp_path / "factors.gguf"
    path.write_bytes(data)
    spec = open_checkpoint(path).spec
    np.testing.assert_allclose(spec.rope_inv_freq, np.array(plain.rope_inv_freq) / [1, 2, 4, 8], rtol=1e-6)
    data[start : start + 16] = struct.pack("<4f", 1, 0, 4, float("nan"))
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match=r"rope_freqs\.weight: holds factors"):
        open_checkpoint(path)


BAD_METADATA: dict[str, tuple[str, int, bytes, type[OutpaceError]]] = {
    "architecture": ("general.architecture", STR, string("rwkv"), UnsupportedModelError),
    "experts": ("llama.expert_count", U32, scalar(U32, 8), UnsupportedModelError),
    "context absurd": ("llama.context_length", U32, scalar(U32, 2**32 - 1), ModelFormatError),
    "context 0": ("llama.context_length", U32, scalar(U32, 0), ModelFormatError),
    "context float": ("llama.context_length", F32, scalar(F32, 128.0), ModelFormatError),
    "layers absurd": ("llama.block_count", U32, scalar(U32, 2**32 - 1), ModelFormatError),
    "heads 0": ("llama.attention.head_count", U32, scalar(U32, 0), ModelFormatError),
    "heads by layer": ("llama.attention.head_count", ARR, array(I32, [4, 2]), ModelFormatError),
    "heads no divisor": ("llama.attention.head_count", U32, scalar(U32, 5), ModelFormatError),
    "kv heads": ("llama.attention.head_count_kv", U32, scalar(U32, 3), ModelFormatError),
    "two head sizes": ("llama.attention.value_length", U32, scalar(U32, 16), UnsupportedModelError),
    "rotary odd": ("llama.rope.dimension_count", U32, scalar(U32, 3), ModelFormatError),
    "rotary wide": ("llama.rope.dimension_count", U32, scalar(U32, 1000), ModelFormatError),
    "theta negative": ("llama.rope.freq_base", F32, scalar(F32, -1.0), ModelFormatError),
    "theta infinite": ("llama.rope.freq_base", F32, scalar(F32, float("inf")), ModelFormatError),
    "eps NaN": ("llama.attention.layer_norm_rms_epsilon", F32, scalar(F32, float("nan")), ModelFormatError),
    "rope type": ("llama.rope.scaling.type", STR, string("longrope"), UnsupportedModelError),
    "fewer tokens": ("tokenizer.ggml.tokens", ARR, array(STR, ["a"] * 39), ModelFormatError),
    "tokens numbers": ("tokenizer.ggml.tokens", ARR, array(I32, [1] * 40), ModelFormatError),
    "fewer types": ("tokenizer.ggml.token_type", ARR, array(I32, [1] * 39), ModelFormatError),
    "types unsigned": ("tokenizer.ggml.token_type", ARR, array(U32, [1] * 40), ModelFormatError),
    "eos too large": ("tokenizer.ggml.eos_token_id", U32, scalar(U32, 40), ModelFormatError),
    "template a number": ("tokenizer.chat_template", U32, scalar(U32, 1), ModelFormatError),
    "no tokenizer": ("tokenizer.ggml.model", STR, string("none"), UnsupportedModelError),
    "merges numbers": ("tokenizer.ggml.merges", ARR, array(I32, [1]), ModelFormatError),
}


@pytest.mark.parametrize("name", BAD_METADATA)
def test_bad_metadata(name: str, tmp_path: Path) -> None:
    key, kind, payload, error = BAD_METADATA[name]
    path = write(tmp_path, with_entry(key, kind, payload))
    with pytest.raises(error) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    if error is ModelFormatError:
        assert key in str(caught.value)


@pytest.mark.parametrize("key", ["general__architecture", "llama__block_count", "tokenizer__ggml__tokens"])
def test_missing_metadata(key: str, tmp_path: Path) -> None:
    path = write(tmp_path, gb.small_file(gb.small_entries(**{key: None})))
    with pytest.raises(ModelFormatError, match=key.replace("__", r"\.") + ": is missing"):
        open_checkpoint(path)


def test_token_ids_that_mean_none(tmp_path: Path) -> None:
    tokenizer = open_checkpoint(
        write(tmp_path, with_entry("tokenizer.ggml.bos_token_id", U32, scalar(U32, 2**32 - 1)))
    ).tokenizer
    assert isinstance(tokenizer, GGUFTokenizer)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (None, 2, None)


# --- tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in gb.small_tensors() if name != "token_embd.weight"])
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    tensors = gb.small_tensors()
    del tensors[name]
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(write(tmp_path, gb.small_file(tensors=tensors)))
    assert (caught.value.field, "missing" in str(caught.value)) == (name, True)


@pytest.mark.parametrize("name", list(gb.small_tensors()))
def test_a_wrong_shape_is_named(name: str, tmp_path: Path) -> None:
    tensors = gb.small_tensors()
    tensors[name].shape = (*tensors[name].shape[:-1], tensors[name].shape[-1] + 32)
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(write(tmp_path, gb.small_file(tensors=tensors)))
    assert caught.value.field in (name, "tokenizer.ggml.tokens")  # more embeddings than tokens


def test_an_unsupported_type_is_named(tmp_path: Path) -> None:
    entries = gb.small_entries(
        llama__embedding_length=entry("llama.embedding_length", U32, scalar(U32, 256)),
        llama__feed_forward_length=entry("llama.feed_forward_length", U32, scalar(U32, 256)),
    )
    tensors = {
        name: Tensor(name, tuple({32: 256, 64: 256, 16: 128}.get(n, n) for n in tensor.shape))
        for name, tensor in gb.small_tensors().items()
    }
    open_checkpoint(write(tmp_path, gb.small_file(entries, tensors)))
    tensors["blk.0.ffn_up.weight"].kind = 23
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.ffn_up\.weight: has the type IQ4_XS"):
        open_checkpoint(write(tmp_path, gb.small_file(entries, tensors)))


def test_a_quantized_norm_is_refused(tmp_path: Path) -> None:
    tensors = gb.small_tensors()
    tensors["output_norm.weight"].kind = 8
    with pytest.raises(UnsupportedModelError, match=r"output_norm\.weight: has the type Q8_0"):
        open_checkpoint(write(tmp_path, gb.small_file(tensors=tensors)))


@pytest.mark.parametrize(
    "name", ["blk.0.attn_output.bias", "blk.0.attn_q_norm.weight", "blk.7.attn_q.weight", "mystery"]
)
def test_a_tensor_that_would_be_ignored_is_refused(name: str, tmp_path: Path) -> None:
    tensors = gb.small_tensors() | {name: Tensor(name, (32,))}
    with pytest.raises(UnsupportedModelError, match=name):
        open_checkpoint(write(tmp_path, gb.small_file(tensors=tensors)))


def test_biases_are_all_there_or_none(tmp_path: Path) -> None:
    biases = {
        f"blk.0.attn_{n}.bias": Tensor(f"blk.0.attn_{n}.bias", (32 if n == "q" else 16,)) for n in "qkv"
    }
    assert (
        "layers.0.k_bias"
        in open_checkpoint(write(tmp_path, gb.small_file(tensors=gb.small_tensors() | biases))).tensors
    )
    del biases["blk.0.attn_k.bias"]
    with pytest.raises(ModelFormatError, match=r"blk\.0\.attn_k\.bias"):
        open_checkpoint(write(tmp_path, gb.small_file(tensors=gb.small_tensors() | biases)))


def test_names_map_both_ways() -> None:
    for name in ("embed", "output", "output_norm", "layers.12.q_bias", "layers.0.down", "layers.3.k_norm"):
        assert from_gguf(to_gguf(name)) == name
        assert from_huggingface(to_huggingface(name)) == name
    for odd in (
        "blk.-1.attn_q.weight",
        "blk.01.attn_q.weight",
        "blk.1.attn_q",
        "model.layers.x.mlp.up_proj.weight",
    ):
        assert from_gguf(odd) is None
        assert from_huggingface(odd) is None


# --- split GGUF ----------------------------------------------------------------------------------


def split_model(folder: Path, count: int = 3, **lies: int) -> Path:
    """The small model in parts: metadata in the first, tensors dealt out. Returns the first part."""
    tensors = list(gb.small_tensors().values())
    for i in range(count):
        number = lies.get(f"no_{i}", i)
        split = {
            "no": entry("split.no", U32, scalar(U32, number)),
            "count": entry("split.count", U32, scalar(U32, lies.get(f"count_{i}", count))),
            "total": entry("split.tensors.count", I32, scalar(I32, lies.get("total", len(tensors)))),
        }
        entries = (gb.small_entries() | split) if i == 0 else split
        mine = tensors[i::count] if "twice" not in lies else tensors[i::count] + tensors[:1]
        part = gb.File(list(entries.values()), mine)
        write(folder, part, f"big-{i + 1:05d}-of-{count:05d}.gguf")
    return folder / f"big-00001-of-{count:05d}.gguf"


def test_split_model_opens_as_one(tmp_path: Path) -> None:
    whole = open_checkpoint(write(tmp_path, gb.small_file()))
    parts = open_checkpoint(split_model(tmp_path))
    assert parts.spec == whole.spec
    assert parts.name == "big"
    assert {n: (t.shape, t.dtype) for n, t in parts.tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in whole.tensors.items()
    }
    assert len({tensor.path for tensor in parts.tensors.values()}) == 3


@pytest.mark.parametrize(
    ("lies", "message"),
    [
        ({"no_1": 0}, r"split\.no: is 0, not 1"),
        ({"count_2": 2}, r"split\.count: is 2"),
        ({"total": 99}, r"split\.tensors\.count: is 99"),
        ({"twice": 1}, "is in .* too|overlap|twice"),
    ],
)
def test_parts_that_disagree(lies: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=message):
        open_checkpoint(split_model(tmp_path, **lies))


def test_parts_missing_misnamed_or_not_the_first(tmp_path: Path) -> None:
    first = split_model(tmp_path)
    with pytest.raises(ModelFormatError, match=r"split\.no.*not the first"):
        open_checkpoint(tmp_path / "big-00002-of-00003.gguf")
    (tmp_path / "big-00003-of-00003.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match="00003-of-00003"):
        open_checkpoint(first)
    with pytest.raises(ModelNotFoundError, match="not named so"):
        open_checkpoint(first.rename(tmp_path / "other.gguf"))


# --- places --------------------------------------------------------------------------------------


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        open_checkpoint(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(ModelFormatError, match="neither a GGUF file nor"):
        open_checkpoint(text)
    weights = tmp_path / "model.safetensors"
    weights.write_text("hello")
    with pytest.raises(ModelNotFoundError, match="give the directory"):
        open_checkpoint(weights)


def test_a_gguf_file_needs_no_suffix(tmp_path: Path) -> None:
    assert open_checkpoint(write(tmp_path, gb.small_file(), "sha256-0123")).name == "sha256-0123"


def test_safetensors_directory_in_the_hugging_face_cache(
    tmp_path: Path, tiny_checkpoint: Callable[..., Any]
) -> None:
    source = tiny_checkpoint("qwen2", "safetensors").path
    snapshot = tmp_path / "models--Some-Owner--a--b" / "snapshots" / "0123abc"
    shutil.copytree(source, snapshot)
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.name == "Some-Owner/a--b"
    assert checkpoint.tokenizer == HFTokenizer(snapshot)
    assert checkpoint.num_bytes == sum(a.nbytes for a in load_file(snapshot / "model.safetensors").values())


def test_tied_output_that_is_stored_twice_is_dropped(
    tmp_path: Path, tiny_checkpoint: Callable[..., Any]
) -> None:
    source = tiny_checkpoint("llama-mqa-tied", "safetensors").path
    folder = tmp_path / "twice"
    shutil.copytree(source, folder)
    arrays = load_file(folder / "model.safetensors")
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(arrays, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert "output" not in checkpoint.tensors
    assert checkpoint.spec.tied_embeddings


def test_untied_output_that_is_missing_is_named(tmp_path: Path, tiny_checkpoint: Callable[..., Any]) -> None:
    folder = tmp_path / "headless"
    shutil.copytree(tiny_checkpoint("llama", "safetensors").path, folder)
    arrays = load_file(folder / "model.safetensors")
    del arrays["lm_head.weight"]
    save_file(arrays, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError, match=r"lm_head\.weight: this tensor is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_the_weights_in_memory_are_what_they_are_made(
    tiny_checkpoint: Callable[..., Any], dtype: str
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama", "gguf", dtype).path)
    kept = checkpoint.weight_bytes("keep")
    assert kept == checkpoint.num_bytes
    bits = {"F32": 32, "F16": 16}[dtype]
    assert checkpoint.weight_bytes("q8_0") == pytest.approx(kept * 8.5 / bits, rel=0.1)
    assert checkpoint.weight_bytes("q4_0") == pytest.approx(kept * 4.5 / bits, rel=0.1)
    for own, bits, weight_format in (("Q4_0", 4.5, "q8_0"), ("Q8_0", 8.5, "q8_0"), ("Q8_0", 4.5, "q4_0")):
        quantized = open_checkpoint(tiny_checkpoint("llama", "gguf", own).path)
        expected = quantized.num_bytes * bits / (8.5 if own == "Q8_0" else 4.5)
        assert quantized.weight_bytes(weight_format) == pytest.approx(expected, rel=0.1)
