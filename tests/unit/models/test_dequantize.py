"""Our dequantizer against the gguf package's, on random blocks and on the edges of each format."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as gguf_dequantize

from outpace.errors import ModelFormatError, UnsupportedModelError
from outpace.models.dequantize import FORMATS, dequantize, read_tensor
from outpace.types import TensorRef

EXPECTED = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"}


def block_bytes(dtype: str) -> tuple[int, int]:
    """Values and bytes in one block."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]


def random_blocks(dtype: str, blocks: int, seed: int = 0) -> np.ndarray:
    """Random bytes: every quant and sub-scale occurs; nan and inf scales (half floats) are left out."""
    _, size = block_bytes(dtype)
    data = np.random.default_rng(seed).integers(0, 256, (blocks, size), np.uint8)
    if dtype == "F32":
        data[:, 3] &= 0xBF  # the exponent's top bit: no inf, no nan
    elif dtype == "BF16":
        data[:, 1] &= 0xBF
    else:
        places = {"Q6_K": (209,), "Q4_1": (1, 3), "Q5_1": (1, 3), "Q4_K": (1, 3), "Q5_K": (1, 3)}
        for place in places.get(dtype, (1,)):
            data[:, place] &= 0xBF
    return data


def test_the_formats_are_those_that_are_promised() -> None:
    assert FORMATS == EXPECTED


@pytest.mark.parametrize("dtype", sorted(EXPECTED))
def test_equals_gguf_to_the_bit(dtype: str) -> None:
    data = random_blocks(dtype, 1000)
    expected = gguf_dequantize(data, gguf.GGMLQuantizationType[dtype]).reshape(-1)
    ours = dequantize(data.tobytes(), dtype)
    assert ours.dtype == np.float32
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(ours, expected)


def test_chunks_join_without_a_seam() -> None:
    data = random_blocks("Q4_K", (1 << 15) + 3)
    expected = gguf_dequantize(data, gguf.GGMLQuantizationType.Q4_K).reshape(-1)
    np.testing.assert_array_equal(dequantize(data.tobytes(), "Q4_K"), expected)


def write_tensor(folder: Path) -> TensorRef:
    data = random_blocks("Q8_0", 12)
    path = folder / "weights.bin"
    path.write_bytes(b"\xff" * 100 + data.tobytes())
    return TensorRef("layers.0.q", path, 100, data.size, "Q8_0", (4, 96))


def test_read_tensor_reads_at_its_offset_in_its_shape(tmp_path: Path) -> None:
    tensor = write_tensor(tmp_path)
    expected = gguf_dequantize(random_blocks("Q8_0", 12), gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(read_tensor(tensor), expected.reshape(4, 96))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shape": (4, 97)}, "do not hold shape"),
        ({"shape": (5, 96)}, "do not hold shape"),
        ({"num_bytes": 34}, "do not hold shape"),
        ({"offset": 101}, "the file ends after 407 of the tensor's 408 bytes"),
        ({"offset": 10_000}, "the file ends after 0"),
    ],
)
def test_lies_are_named(tmp_path: Path, changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ModelFormatError, match=problem) as caught:
        read_tensor(dataclasses.replace(write_tensor(tmp_path), **changes))
    assert caught.value.field == "layers.0.q"
    assert "weights.bin" in str(caught.value)


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    tensor = dataclasses.replace(write_tensor(tmp_path), dtype="IQ2_XS")
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.q: tensor type IQ2_XS is not supported"):
        read_tensor(tensor)
    with pytest.raises(UnsupportedModelError, match="IQ2_XS"):
        dequantize(b"", "IQ2_XS")
