"""The bounds of the golden tests, tested: the oracle meets them, and a broken oracle does not.

What no bound on a real model can see, tiny checkpoints do (`test_oracle_tiny.py`, `test_native_tiny.py`):
a norm's eps off by a hundred moves SmolLM2 by 0.002 nats, less than int8 activations may.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from golden.agreement import compare, figures
from golden.reference import Document, Reference, exact_kl, load, log_softmax, save, tail_kl
from outpace.backends import torch_backend
from outpace.backends.torch_backend import TorchBackend
from outpace.models import names
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.models.dequantize import read_tensor
from outpace.types import EngineConfig, ModelSpec
from stepping import run_logits
from tiny import reference_logits
from tiny_gguf import unpermute

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LENGTH = 128  # tokens; a break shows at once


@pytest.fixture(scope="module")
def checkpoint(model_135m: Path) -> Checkpoint:
    return open_checkpoint(model_135m)


@pytest.fixture(scope="module")
def document() -> Document:
    return load("smollm2-135m").documents[0]


def respecified(checkpoint: Checkpoint, **changes: object) -> Checkpoint:
    return dataclasses.replace(checkpoint, spec=dataclasses.replace(checkpoint.spec, **changes))


def swapped(checkpoint: Checkpoint, first: str, second: str) -> Checkpoint:
    tensors = dict(checkpoint.tensors)
    tensors[first], tensors[second] = tensors[second], tensors[first]
    return dataclasses.replace(checkpoint, tensors=tensors)


def inverse_frequencies(theta: float, head_dim: int) -> tuple[float, ...]:
    return tuple((theta ** (-np.arange(0, head_dim, 2) / head_dim)).tolist())


BREAKS: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "rope theta 10,000 for 100,000": lambda c: respecified(
        c, rope_inv_freq=inverse_frequencies(1e4, c.spec.head_dim)
    ),
    "rope of halves for pairs": lambda c: respecified(c, rope_kind="half"),
    "no rope": lambda c: respecified(c, rope_kind="none"),
    "norm eps times 1,000": lambda c: respecified(c, norm_eps=c.spec.norm_eps * 1000),
    "two norms swapped": lambda c: swapped(c, "layers.3.attn_norm", "layers.3.ffn_norm"),
    "two layers' norms swapped": lambda c: swapped(c, "layers.3.attn_norm", "layers.9.attn_norm"),
    "gate and up swapped": lambda c: swapped(c, "layers.0.gate", "layers.0.up"),
    "no attention scale": lambda c: respecified(c, attention_scale=1.0),
    "attention scale 1/d": lambda c: respecified(c, attention_scale=1 / c.spec.head_dim),
    "a window that is not there": lambda c: respecified(c, sliding_window=32),
    "another activation": lambda c: respecified(c, activation="gelu_tanh"),
    "scaled embeddings": lambda c: respecified(c, embedding_scale=1.25),
}


def test_the_oracle_is_far_inside(checkpoint: Checkpoint, document: Document) -> None:
    got = figures([compare(TorchBackend(checkpoint, EngineConfig()), document, length=LENGTH)])
    assert got.within_bounds, got
    assert got.mean_kl < 1e-6
    assert got.top1 == 1
    assert abs(got.perplexity_change) < 1e-4


@pytest.mark.parametrize("broken", BREAKS)
def test_a_break_is_caught(checkpoint: Checkpoint, document: Document, broken: str) -> None:
    backend = TorchBackend(BREAKS[broken](checkpoint), EngineConfig())
    got = figures([compare(backend, document, length=LENGTH)])
    assert not got.within_bounds, f"{broken} went unnoticed: {got}"


def test_a_missing_mask_is_caught(
    checkpoint: Checkpoint, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everything(position: int, spec: ModelSpec) -> slice:
        return slice(None)

    monkeypatch.setattr(torch_backend, "_visible", everything)
    got = figures([compare(TorchBackend(checkpoint, EngineConfig()), document, length=LENGTH)])
    assert not got.within_bounds, got


def smollm2(checkpoint: Checkpoint) -> LlamaForCausalLM:
    """transformers' model with the published hyperparameters and the file's weights in float32."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )
    model = LlamaForCausalLM(config).eval()
    heads = {"q_proj": 9, "k_proj": 3}  # whose rows llama.cpp's converter reorders
    with torch.no_grad():
        for name, weight in model.named_parameters():
            held = read_tensor(checkpoint.tensors[str(names.from_huggingface(name))])
            permuted = heads.get(name.split(".")[-2], 0)
            weight.copy_(torch.from_numpy(unpermute(held, permuted) if permuted else held))
    return model


def test_the_oracle_equals_transformers_over_the_whole_vocabulary(
    checkpoint: Checkpoint, document: Document
) -> None:
    """Live, on all logits; and the stored reference's bound is not far below the exact divergence."""
    ids = document.token_ids[:LENGTH].tolist()
    expected = reference_logits(smollm2(checkpoint), ids)
    ours = run_logits(TorchBackend(checkpoint, EngineConfig()), ids)
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()
    assert exact_kl(expected, ours).mean() < 1e-7

    broken = TorchBackend(BREAKS["rope theta 10,000 for 100,000"](checkpoint), EngineConfig())
    kept = document.positions[document.positions < LENGTH]
    theirs = run_logits(broken, ids)[kept]
    top = document.top_token_ids[: len(kept)].astype(np.int64)
    theirs_top = np.take_along_axis(log_softmax(theirs), top, axis=-1)
    bound = tail_kl(document.top_logprobs[: len(kept)], theirs_top).mean()
    exact = exact_kl(expected[kept], theirs).mean()
    assert 0.8 * exact < bound <= exact


def test_the_tail_bound_never_exceeds_the_exact_divergence() -> None:
    random = np.random.default_rng(0)
    reference = random.normal(0, 3, (200, 1000)).astype(np.float32)
    ours = reference + random.normal(0, 1, reference.shape).astype(np.float32)
    p, q = log_softmax(reference), log_softmax(ours)
    top = np.argsort(-reference, axis=-1)[:, :64]
    bound = tail_kl(
        np.take_along_axis(p, top, axis=-1).astype(np.float32), np.take_along_axis(q, top, axis=-1)
    )
    exact = exact_kl(reference, ours)
    assert (bound <= exact + 1e-6).all()
    assert (bound > 0).all()
    np.testing.assert_allclose(exact_kl(reference, reference), 0, atol=1e-12)


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_a_reference_holds_what_the_bounds_need(name: str, tmp_path: Path) -> None:
    reference = load(name)
    for kind in ("code", "prose"):
        documents = [document for document in reference.documents if document.kind == kind]
        assert sum(len(document.token_ids) for document in documents) >= 4000
        assert sum((document.positions >= 2000).sum() for document in documents) >= 100
    for document in reference.documents:
        assert (np.diff(document.top_logprobs, axis=-1) <= 0).all()
        assert (np.exp(document.top_logprobs.astype(np.float64)).sum(-1) <= 1 + 1e-6).all()
        np.testing.assert_array_equal(document.top_token_ids[:, 0], document.best[document.positions])
    save(reference, tmp_path / "again.npz")
    assert_equal(load_from(tmp_path / "again.npz"), reference)


def load_from(path: Path) -> Reference:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("golden.reference.DATA", path.parent)
        return load(path.stem)


def assert_equal(first: Reference, second: Reference) -> None:
    assert first.model_sha256 == second.model_sha256
    assert first.made_with == second.made_with
    for a, b in zip(first.documents, second.documents, strict=True):
        for field in dataclasses.fields(Document):
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
