"""A draft head's folder is believed only after it was checked, against itself and against the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from outpace import LLM
from outpace.errors import ModelFormatError, ModelNotFoundError, OutpaceError, UsageError
from outpace.models.draft_head import open_head
from outpace.types import ModelSpec

HIDDEN, VOCAB, DRAFT = 32, 100, 40
SPEC = ModelSpec(
    architecture="llama",
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=64,
    max_context=512,
    norm_eps=1e-5,
)
CONFIG = {
    "format": "outpace-draft-head",
    "version": 1,
    "target": {"architecture": "llama", "hidden_size": HIDDEN, "num_layers": 3, "vocab_size": VOCAB},
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "rope_theta": 10000.0,
    "norm_eps": 1e-5,
    "draft_vocab_size": DRAFT,
}
SHAPES = {
    "fc": (HIDDEN, 2 * HIDDEN),
    "layers.0.attn_norm": (HIDDEN,),
    "layers.0.q": (32, HIDDEN),
    "layers.0.k": (16, HIDDEN),
    "layers.0.v": (16, HIDDEN),
    "layers.0.o": (HIDDEN, 32),
    "layers.0.ffn_norm": (HIDDEN,),
    "layers.0.gate": (64, HIDDEN),
    "layers.0.up": (64, HIDDEN),
    "layers.0.down": (HIDDEN, 64),
    "output_norm": (HIDDEN,),
    "output": (DRAFT, HIDDEN),
}
TOKENS = "draft_to_target"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tensors = {name: np.zeros(shape, np.float16) for name, shape in SHAPES.items()}
    tensors[TOKENS] = np.arange(1, DRAFT + 1, dtype=np.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def configure(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def change(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = {name: tensor.copy() for name, tensor in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_head_is_read(folder: Path) -> None:
    head = open_head(folder, SPEC)
    assert set(head.tensors) == set(SHAPES)
    assert head.token_ids.tolist() == list(range(1, DRAFT + 1))
    assert (head.spec.vocab_size, head.spec.num_layers, head.spec.head_dim) == (DRAFT, 1, 16)
    assert head.spec.rope_inv_freq[:2] == pytest.approx((1.0, 10000 ** (-1 / 8)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 64),
        ("vocab_size", 101),
        ("num_layers", 4),
        ("architecture", "qwen2"),
        ("vocab_size", None),
    ],
)
def test_a_head_for_another_model_is_refused(folder: Path, name: str, value: object) -> None:
    configure(folder, target=CONFIG["target"] | {name: value})
    with pytest.raises(
        UsageError, match=f"trained for another model: {name} is .*take a head for this model"
    ):
        open_head(folder, SPEC)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format": "eagle"}, UsageError, "is no draft head"),
        ({"version": 2}, ModelFormatError, "version: is 2, and this Outpace reads version 1"),
        ({"target": None}, ModelFormatError, "target: is missing"),
        ({"num_kv_heads": 3}, ModelFormatError, "num_kv_heads: is 3, not within 1 to 2"),
        ({"head_dim": 15}, ModelFormatError, "head_dim: is 15; rotary"),
        ({"num_layers": 9}, ModelFormatError, "num_layers: is 9"),
        ({"draft_vocab_size": VOCAB + 1}, ModelFormatError, "draft_vocab_size: is 101"),
        ({"draft_vocab_size": 39}, ModelFormatError, r"draft_to_target: is I32 \(40,\), not I32 \(39,\)"),
        ({"intermediate_size": 96}, ModelFormatError, r"gate: has the shape \(64, 32\), not \(96, 32\)"),
        ({"rope_theta": "big"}, ModelFormatError, "rope_theta: is 'big', not a number"),
        ({"num_layers": 2}, ModelFormatError, r"layers\.1\.attn_norm: this tensor is missing"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(
    folder: Path, changes: dict[str, object], error: type[OutpaceError], message: str
) -> None:
    configure(folder, **changes)
    with pytest.raises(error, match=message):
        open_head(folder, SPEC)


@pytest.mark.parametrize("name", [*SHAPES, TOKENS])
def test_every_tensor_must_be_there(folder: Path, name: str) -> None:
    change(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelFormatError, match=f"{name}: this tensor is missing"):
        open_head(folder, SPEC)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.arange(DRAFT)[::-1], "not ascending"),
        (np.arange(DRAFT) + VOCAB - DRAFT + 1, "not ascending from 0 to 99"),
        (np.arange(DRAFT) - 1, "not ascending"),
        (np.zeros(DRAFT), "not ascending"),
    ],
)
def test_draft_tokens_must_be_the_model_s(folder: Path, ids: np.ndarray, message: str) -> None:
    change(folder, lambda tensors: tensors.update({TOKENS: ids.astype(np.int32)}))
    with pytest.raises(ModelFormatError, match=message):
        open_head(folder, SPEC)


def test_types_and_strangers_are_refused(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update(fc=np.zeros(SHAPES["fc"], np.int8)))
    with pytest.raises(ModelFormatError, match="fc: has the type I8, none of BF16, F16, F32"):
        open_head(folder, SPEC)
    change(
        folder, lambda tensors: tensors.update(fc=np.zeros(SHAPES["fc"], np.float32), stranger=np.zeros(3))
    )
    with pytest.raises(ModelFormatError, match="stranger: a draft head has no such tensor"):
        open_head(folder, SPEC)


def test_missing_and_damaged_files_are_told(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for kept in (0, 7, 100, len(whole) - 1):
        weights.write_bytes(whole[:kept])
        with pytest.raises(ModelFormatError, match=r"model\.safetensors"):
            open_head(folder, SPEC)
    weights.unlink()
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors"):
        open_head(folder, SPEC)
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        open_head(folder / "nowhere", SPEC)


def test_the_reason_reaches_the_user(folder: Path, model_135m: Path) -> None:
    with pytest.raises(UsageError, match="hidden_size is 32 there, and 576 here"):
        LLM(model_135m, draft_head=str(folder))
