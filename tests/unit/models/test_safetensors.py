"""The safetensors reader: right against the safetensors package, and never fooled."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from outpace.errors import ModelFormatError, ModelNotFoundError
from outpace.models.safetensors import read_safetensors, read_safetensors_directory

HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "scalar": {"dtype": "F16", "shape": [], "data_offsets": [32, 34]},
    "empty": {"dtype": "F16", "shape": [0, 5], "data_offsets": [34, 34]},
}


def encode(header: object, length: int | None = None, data: int = 34) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\1" * data


def write(folder: Path, data: bytes, name: str = "model.safetensors") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_reads_what_the_package_writes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "x.weight": random.normal(size=(7, 5)).astype(np.float32),
        "y": random.normal(size=(3,)).astype(np.float16),
        "z": random.integers(0, 9, (2, 2, 2)),
    }
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "np"})
    tensors = read_safetensors(path)
    with safe_open(path, "np") as theirs:
        assert set(tensors) == set(theirs.keys())
    for name, expected in arrays.items():
        own = tensors[name]
        read = np.fromfile(path, expected.dtype, expected.size, offset=own.offset)
        assert np.array_equal(read.reshape(own.shape), expected)
        assert own.num_bytes == expected.nbytes
    assert [tensors[name].dtype for name in arrays] == ["F32", "F16", "I64"]


def test_shapes_of_every_kind(tmp_path: Path) -> None:
    tensors = read_safetensors(write(tmp_path, encode(HEADER)))
    assert {name: (t.dtype, t.shape, t.num_bytes) for name, t in tensors.items()} == {
        "a": ("F32", (2, 3), 24),
        "b": ("BF16", (4,), 8),
        "scalar": ("F16", (), 2),
        "empty": ("F16", (0, 5), 0),
    }


def lie(name: str, **fields: Any) -> bytes:
    """The header with some of one tensor's fields replaced."""
    return encode(HEADER | {name: HEADER[name] | fields})


LIES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "header length"),
    "seven bytes": (b"\1" * 7, "header length"),
    "length past the end": (encode(HEADER, length=10_000), "header length"),
    "length absurd": (encode(HEADER, length=2**64 - 1), "header length"),
    "no JSON": (encode(b"{nonsense"), "header"),
    "not UTF-8": (encode(b"\xff\xfe{}"), "header"),
    "a list": (encode([]), "header"),
    "nested too deep": (encode(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "header"),
    "a number of 5000 digits": (encode(b'{"a":' + b"1" * 5000 + b"}"), "header"),
    "a key twice": (encode(b'{"a":{}, "a":{}}'), "header"),
    "tensor not an object": (encode({"a": 3}), "a"),
    "no dtype": (encode({"a": {"shape": [1], "data_offsets": [0, 4]}}), "a.dtype"),
    "odd dtype": (lie("a", dtype="F17"), "a.dtype"),
    "dtype a list": (lie("a", dtype=["F32"]), "a.dtype"),
    "no shape": (lie("a", shape=None), "a.shape"),
    "negative extent": (lie("a", shape=[-2, -3]), "a.shape"),
    "fractional extent": (lie("a", shape=[2.0, 3]), "a.shape"),
    "boolean extent": (lie("a", shape=[True, 6]), "a.shape"),
    "huge extent": (lie("a", shape=[2**70]), "a.shape"),
    "too many dimensions": (lie("a", shape=[1] * 9), "a.shape"),
    "shape and bytes disagree": (lie("a", shape=[2, 4]), "a.data_offsets"),
    "extents overflow": (lie("a", shape=[2**62, 2**62]), "a.data_offsets"),
    "offsets past the end": (lie("a", data_offsets=[0, 2**40]), "a.data_offsets"),
    "offsets backwards": (lie("a", data_offsets=[24, 0]), "a.data_offsets"),
    "three offsets": (lie("a", data_offsets=[0, 1, 24]), "a.data_offsets"),
    "offsets no list": (lie("a", data_offsets="0-24"), "a.data_offsets"),
    "data overlaps": (lie("b", data_offsets=[16, 24]), "b"),
    "data cut off": (encode(HEADER, data=33), "scalar.data_offsets"),
    "data left over": (encode(HEADER, data=35), "header"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_ends_in_an_error_that_names_file_and_field(name: str, tmp_path: Path) -> None:
    data, field = LIES[name]
    path = write(tmp_path, data)
    with pytest.raises(ModelFormatError) as caught:
        read_safetensors(path)
    assert (caught.value.path, caught.value.field) == (str(path), field)


def test_sharded_directory(tmp_path: Path) -> None:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({"a": np.ones(3, np.float32)}, tmp_path / one)
    save_file({"b": np.ones(4, np.float32)}, tmp_path / two)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": one, "b": two}}))
    tensors = read_safetensors_directory(tmp_path)
    assert {name: tensor.path.name for name, tensor in tensors.items()} == {"a": one, "b": two}

    index.write_text(json.dumps({"weight_map": {"a": two}}))
    with pytest.raises(ModelFormatError, match=f"{two}: a: this tensor is missing"):
        read_safetensors_directory(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "model-00003-of-00003.safetensors"}}))
    with pytest.raises(ModelNotFoundError, match="00003"):
        read_safetensors_directory(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "passwd", 3, None]
)
def test_an_index_cannot_point_elsewhere(shard: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelFormatError, match=r"weight_map\.a"):
        read_safetensors_directory(tmp_path)


def test_a_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="neither"):
        read_safetensors_directory(tmp_path)


# --- fuzz ----------------------------------------------------------------------------------------

VALID = encode(HEADER)
fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(path: Path, limit: float = 2) -> None:
    error: ModelFormatError | None = None
    tracemalloc.start()
    start = time.process_time()
    try:
        read_safetensors(path)
    except ModelFormatError as caught:
        error = caught
    finally:
        seconds = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert error is None or (error.path == str(path) and error.field)
    assert peak < 50 * path.stat().st_size + (1 << 20)
    assert seconds < limit


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, VALID)
    read_safetensors(path)
    for size in range(len(VALID)):
        path.write_bytes(VALID[:size])
        with pytest.raises(ModelFormatError):
            read_safetensors(path)


@fuzz
@given(flips=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 7)), min_size=1, max_size=5))
def test_flipped_bits(flips: list[tuple[int, int]], tmp_path: Path) -> None:
    data = bytearray(VALID)
    for position, bit in flips:
        data[position] ^= 1 << bit
    check(write(tmp_path, bytes(data)))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "BF16"]),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=4)
    ),
    max_leaves=8,
)


@fuzz
@given(
    header=st.dictionaries(
        st.text(max_size=8),
        json_values
        | st.fixed_dictionaries({"dtype": json_values, "shape": json_values, "data_offsets": json_values}),
        max_size=4,
    ),
    data=st.integers(0, 40),
)
def test_any_header(header: dict[str, Any], data: int, tmp_path: Path) -> None:
    check(write(tmp_path, encode(header, data=data)))


def test_a_header_of_empty_lists_stays_in_bounds(tmp_path: Path) -> None:
    text = b'{"a":[' + b"[]," * 300_000 + b"[]]}"
    check(write(tmp_path, encode(text, data=0)), limit=10)  # tracing every allocation is what takes long


def test_a_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, encode(b"{}", length=9 << 20))
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(ModelFormatError, match="header length: is 9437184; the limit is 8388608"):
        read_safetensors(path)
