"""Loading into the native core: what is wrong with a file is named; floats are quantized on request."""

from __future__ import annotations

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
from outpace.types import TensorRef, WeightFormat
from stepping import Rows, make_batch, run_logits
from tiny_checkpoint import TinyFactory

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
