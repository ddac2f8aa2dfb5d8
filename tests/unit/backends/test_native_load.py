"""Loading into the native core: what is wrong with a file is named; weights take fewer bits on request."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from outpace.backends.native_backend import NativeBackend
from outpace.config import resolve_engine_config
from outpace.errors import BackendError
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.types import StepOutput, TensorRef, WeightFormat
from stepping import Rows, greedy, make_batch, run_logits
from tiny_checkpoint import TinyFactory
from tiny_gguf import write_gguf

TOKENS = np.random.default_rng(5).integers(0, 300, 60).tolist()


def load(checkpoint: Checkpoint, weight_format: WeightFormat = "keep") -> NativeBackend:
    config = resolve_engine_config(
        checkpoint.spec, {"kv_cache_bytes": 4 << 20, "num_threads": 2, "weight_format": weight_format}
    )
    return NativeBackend(checkpoint, config)


def with_tensor(checkpoint: Checkpoint, name: str, **changes: object) -> Checkpoint:
    tensors: Mapping[str, TensorRef] = checkpoint.tensors
    changed = replace(tensors[name], **changes)  # type: ignore[arg-type]  # fields by name
    return replace(checkpoint, tensors={**tensors, name: changed})


@pytest.fixture
def checkpoint(tiny_checkpoint: TinyFactory) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint("llama", dtype="Q8_0").path)


def test_a_missing_tensor_is_named(checkpoint: Checkpoint) -> None:
    tensors = {name: ref for name, ref in checkpoint.tensors.items() if name != "layers.1.up"}
    with pytest.raises(BackendError, match=r"no tensor 'layers\.1\.up'"):
        load(replace(checkpoint, tensors=tensors))


def test_a_wrong_shape_is_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(BackendError, match=r"'layers\.0\.q' is 7 x 32, but the model's metadata asks for"):
        load(with_tensor(checkpoint, "layers.0.q", shape=(7, 32)))


def test_an_unknown_type_is_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(BackendError, match=r"'layers\.0\.q' has the type IQ2_XS"):
        load(with_tensor(checkpoint, "layers.0.q", dtype="IQ2_XS"))


def test_bytes_that_do_not_fit_the_type_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(BackendError, match=r"'layers\.0\.down' does not have the bytes"):
        load(with_tensor(checkpoint, "layers.0.down", dtype="Q4_0"))


def test_a_file_that_shrank_is_an_error_and_no_crash(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shorter = tmp_path / "shorter.gguf"
    shutil.copy(checkpoint.path, shorter)
    with shorter.open("r+b") as file:
        file.truncate(shorter.stat().st_size - 100)
    moved = {name: replace(ref, path=shorter) for name, ref in checkpoint.tensors.items()}
    with pytest.raises(BackendError, match=r"shorter\.gguf: ends before its tensors do"):
        load(replace(checkpoint, tensors=moved))


def test_a_file_that_went_away_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"gone\.gguf: cannot be opened: No such file"):
        load(with_tensor(checkpoint, "embed", path=tmp_path / "gone.gguf"))


def test_weights_that_are_no_numbers_end_in_an_error(tiny_checkpoint: TinyFactory, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama", dtype="F32").path)
    broken = tmp_path / "nan.gguf"
    shutil.copy(checkpoint.path, broken)
    norm = checkpoint.tensors["output_norm"]
    with broken.open("r+b") as file:
        file.seek(norm.offset)
        file.write(b"\xff" * norm.num_bytes)
    moved = {name: replace(ref, path=broken) for name, ref in checkpoint.tensors.items()}
    backend = load(replace(checkpoint, tensors=moved))
    with pytest.raises(BackendError, match="not numbers"):
        backend.step(make_batch([Rows([1, 2, 3], 0, [0])]))
    backend.close()


@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0"])
def test_float_weights_are_quantized_as_a_gguf_file_would_be(
    tiny_checkpoint: TinyFactory, weight_format: WeightFormat
) -> None:
    """The same model, quantized by the gguf package into a file and by the core at load: the same logits."""
    floats = open_checkpoint(tiny_checkpoint("qwen2", "safetensors", "F32").path)
    blocks = open_checkpoint(tiny_checkpoint("qwen2", "gguf", weight_format.upper()).path)
    quantized, from_file = load(floats, weight_format), load(blocks)
    np.testing.assert_array_equal(run_logits(quantized, TOKENS), run_logits(from_file, TOKENS))
    assert quantized.description["memory_bytes"] == from_file.description["memory_bytes"]
    quantized.close()
    from_file.close()


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [("qwen2", dtype) for dtype in ("F16", "BF16", "Q4_1", "Q5_0", "Q5_1", "Q8_0")]
    + [("qwen2-k", dtype) for dtype in ("Q5_K", "Q6_K")],
)
def test_blocks_of_more_bits_become_what_their_weights_would(
    tiny_checkpoint: TinyFactory, tmp_path: Path, variant: str, dtype: str
) -> None:
    made = tiny_checkpoint(variant, "gguf", dtype)
    held = copy.deepcopy(made.model)  # of exactly the file's weights
    expected = open_checkpoint(write_gguf(held, tmp_path / "q4_0.gguf", "Q4_0"))
    fewer, from_file = load(open_checkpoint(made.path), "q4_0"), load(expected)
    np.testing.assert_array_equal(run_logits(fewer, TOKENS), run_logits(from_file, TOKENS))
    assert fewer.description["memory_bytes"] == from_file.description["memory_bytes"]
    fewer.close()
    from_file.close()


@pytest.mark.parametrize(
    ("variant", "dtype", "weight_format"),
    [
        ("qwen2", "Q4_0", "q4_0"),
        ("qwen2-k", "Q4_K", "q4_0"),
        ("qwen2", "Q5_1", "q8_0"),
        ("qwen2", "Q8_0", "q8_0"),
    ],
)
def test_blocks_of_no_more_bits_stay(
    tiny_checkpoint: TinyFactory, variant: str, dtype: str, weight_format: WeightFormat
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(variant, "gguf", dtype).path)
    asked, kept = load(checkpoint, weight_format), load(checkpoint)
    np.testing.assert_array_equal(run_logits(asked, TOKENS), run_logits(kept, TOKENS))
    asked.close()
    kept.close()


@pytest.mark.parametrize("variant", ["qwen2", "qwen2-tied"])
@pytest.mark.parametrize("num_tokens", [1, 16, 100])
def test_an_output_of_the_first_tokens_alone(
    tiny_checkpoint: TinyFactory, variant: str, num_tokens: int
) -> None:
    """As if all others were forbidden, whatever asks for them; the first ones' logits are what they were."""
    backend = load(open_checkpoint(tiny_checkpoint(variant, "gguf", "Q8_0").path))
    vocab_size = backend.spec.vocab_size
    mask = np.zeros(-(-vocab_size // 32) * 32, bool)
    mask[:num_tokens] = True
    words = np.packbits(mask, bitorder="little").view(np.uint32)
    bias = np.array([0, vocab_size - 1], np.int32), np.array([1.0, 50.0], np.float32)

    def step(temperature: float, first: int) -> StepOutput:
        record = greedy(num_logprobs=3)
        record["temperature"], record["repetition_penalty"], record["seed"] = temperature, 1.1, 3
        batch = make_batch([Rows(TOKENS, 0, range(2), sampling=record)], want_logits=True)
        batch.history, batch.logit_bias = [np.array(TOKENS, np.int32)], [bias]
        batch.num_output_tokens = first
        if not first:
            batch.token_masks = [words]
        return backend.step(batch)

    for temperature in (0.0, 1.0, 50.0):
        got, expected = step(temperature, num_tokens), step(temperature, 0)
        assert got.logits is not None
        assert expected.logits is not None
        np.testing.assert_array_equal(got.logits[:, :num_tokens], expected.logits[:, :num_tokens])
        assert np.isneginf(got.logits[:, num_tokens:]).all()
        assert got.token_ids[0, 0] == expected.token_ids[0, 0] < num_tokens
        assert got.top_token_ids is not None
        assert (got.top_token_ids < num_tokens).all()
    with pytest.raises(BackendError, match="num_output_tokens"):
        step(0.0, vocab_size + 1)
    backend.close()


@pytest.mark.parametrize("other", [np.array(TOKENS, np.int64), np.repeat(np.array(TOKENS, np.int32), 2)[::2]])
def test_a_history_of_another_type_is_refused(tiny_checkpoint: TinyFactory, other: np.ndarray) -> None:
    """Converted, it would be freed before it is read."""
    backend = load(open_checkpoint(tiny_checkpoint("qwen2", "gguf", "Q8_0").path))
    record = greedy()
    record["repetition_penalty"] = 1.1
    batch = make_batch([Rows(TOKENS, 0, range(2), sampling=record)])
    batch.history = [other]
    with pytest.raises(BackendError, match="'history' has another type, or gaps"):
        backend.step(batch)
    backend.close()
