"""The GGUF reader: right against the gguf package, and never fooled."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_bytes as gb
import numpy as np
import pytest
from gguf_bytes import ARR, BOOL, F32, I32, STR, U8, U32, U64, File, Tensor, array, entry, scalar, string
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outpace import _native
from outpace.errors import ModelFormatError, ModelNotFoundError, OutpaceError, UnsupportedModelError
from outpace.models.checkpoint import open_checkpoint
from outpace.models.ggml_types import GGML_TYPES
from outpace.models.gguf import read_gguf


def write(folder: Path, data: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# --- right ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["model_135m", "model_15b"])
def test_real_files_read_as_the_gguf_package_reads_them(fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    expected = {key: value for key, value in theirs.fields.items() if not key.startswith("GGUF.")}
    assert set(ours.metadata) == set(expected)
    for key, their_field in expected.items():
        value = ours.metadata[key]
        if their_field.types[0] != gguf.GGUFValueType.ARRAY:
            assert value == their_field.contents(), key
        elif their_field.types[-1] == gguf.GGUFValueType.STRING:
            assert value == [bytes(their_field.parts[i]).decode() for i in their_field.data], key
        else:
            assert np.array_equal(value, np.concatenate([their_field.parts[i] for i in their_field.data])), (
                key
            )
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        own = ours.tensors[tensor.name]
        assert (own.dtype, own.offset, own.num_bytes) == (
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
        assert own.shape == tuple(int(extent) for extent in reversed(tensor.shape))
    assert (ours.version, ours.alignment, ours.data_offset) == (3, theirs.alignment, theirs.data_offset)


def test_every_value_type_survives(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    limits: dict[str, tuple[Callable[[str, Any], None], Any]] = {
        "u8": (writer.add_uint8, 255),
        "i8": (writer.add_int8, -128),
        "u16": (writer.add_uint16, 65535),
        "i16": (writer.add_int16, -32768),
        "u32": (writer.add_uint32, 2**32 - 1),
        "i32": (writer.add_int32, -(2**31)),
        "u64": (writer.add_uint64, 2**64 - 1),
        "i64": (writer.add_int64, -(2**63)),
        "f32": (writer.add_float32, 0.5),
        "f64": (writer.add_float64, 0.1),
        "true": (writer.add_bool, True),
        "false": (writer.add_bool, False),
        "text": (writer.add_string, "zwölf 🦆\n\0"),
        "texts": (writer.add_array, ["", "a", "ü" * 300]),
        "numbers": (writer.add_array, [1, -2, 3]),
        "floats": (writer.add_array, [0.5, -1.25]),
        "flags": (writer.add_array, [True, False]),
    }
    for key, (add, value) in limits.items():
        add(key, value)
    writer.add_custom_alignment(64)
    writer.add_tensor("a", np.arange(33, dtype=np.float32))
    writer.add_tensor("b", np.ones((2, 3), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    for key, (_, value) in limits.items():
        read = file.metadata[key]
        assert (read.tolist() if isinstance(read, np.ndarray) else read) == value, key
        assert not isinstance(value, bool) or isinstance(read, bool)
    assert file.alignment == 64
    a, b = file.tensors["a"], file.tensors["b"]
    assert np.array_equal(np.fromfile(path, np.float32, 33, offset=a.offset), np.arange(33))
    assert (b.dtype, b.shape, b.num_bytes, b.offset % 64) == ("F16", (2, 3), 12, 0)


def test_nested_and_empty_arrays_and_version_2(tmp_path: Path) -> None:
    inner = array(I32, [1, 2]), array(I32, [])
    nested = struct.pack("<IQ", ARR, 2) + b"".join(inner)
    entries = [entry("nested", ARR, nested), entry("none", ARR, array(STR, []))]
    file = read_gguf(write(tmp_path, File(entries, version=2).to_bytes()))
    values = file.metadata["nested"]
    assert isinstance(values, list)
    assert [value.tolist() for value in values] == [[1, 2], []]
    assert file.metadata["none"] == []
    assert (file.version, dict(file.tensors)) == (2, {})


def test_a_header_longer_than_the_first_read(tmp_path: Path) -> None:
    long_text = "x" * (9 << 20)
    tokens = ["ab" * 100] * 1000
    file = gb.small_file(
        gb.small_entries(
            general__long=entry("general.long", STR, string(long_text)),
            general__many=entry("general.many", ARR, array(STR, tokens)),
        )
    )
    metadata = read_gguf(write(tmp_path, file.to_bytes())).metadata
    assert metadata["general.long"] == long_text
    assert metadata["general.many"] == tokens


LENGTHS = st.integers(0, 20) | st.sampled_from([2**32, 2**63, 2**64 - 8, 2**64 - 1])
ITEMS = st.tuples(LENGTHS, st.binary(max_size=12) | st.text(max_size=6).map(str.encode))


def split_in_python(data: bytes, at: int, count: int) -> tuple[list[str], int] | None:
    strings: list[str] = []
    for _ in range(count):
        length = int.from_bytes(data[at : at + 8], "little")
        end = at + 8 + length
        if at + 8 > len(data) or end > len(data):
            return None
        try:
            strings.append(data[at + 8 : end].decode())
        except UnicodeDecodeError:
            return None
        at = end
    return strings, at


@given(st.lists(ITEMS, max_size=8), st.integers(0, 10), st.integers(0, 12), st.booleans())
@settings(max_examples=500, deadline=None)
def test_the_core_splits_strings_as_python_does(
    items: list[tuple[int, bytes]], at: int, count: int, lies: bool
) -> None:
    pieces = [struct.pack("<Q", length if lies else len(text)) + text for length, text in items]
    data = b"x" * at + b"".join(pieces)
    assert _native.split_strings(data, at, count) == split_in_python(data, at, count)
    assert _native.split_strings(data, at, len(items)) == split_in_python(data, at, len(items))


def test_the_core_refuses_counts_and_places_beyond_the_data() -> None:
    for at, count in ((0, 2**64 - 1), (0, 2**61), (17, 0), (2**64 - 1, 1), (9, 1)):
        assert _native.split_strings(bytes(16), at, count) is None
    assert _native.split_strings(bytes(16), 16, 0) == ([], 16)
    assert _native.split_strings(bytes(16), 0, 2) == (["", ""], 16)


def test_ggml_types_are_those_of_the_gguf_package() -> None:
    theirs = {
        int(kind): (kind.name, *sizes)
        for kind, sizes in gguf.GGML_QUANT_SIZES.items()
        if kind.name != "Q8_1"  # listed there with the size that it had before 2023
    }
    ours = {number: (kind.name, kind.block_size, kind.block_bytes) for number, kind in GGML_TYPES.items()}
    assert {number: ours.get(number) for number in theirs} == theirs


def test_opening_a_large_vocabulary_is_quick(model_15b: Path) -> None:
    times: list[float] = []
    for _ in range(3):
        start = time.process_time()
        open_checkpoint(model_15b)
        times.append(time.process_time() - start)
    assert min(times) < 0.25


# --- lies ----------------------------------------------------------------------------------------


def change(name: str, kind: int, payload: bytes) -> dict[str, bytes]:
    return gb.small_entries(**{name.replace(".", "__"): entry(name, kind, payload)})


def with_tensor(name: str, **changes: Any) -> dict[str, Tensor]:
    tensors = gb.small_tensors()
    for field, value in changes.items():
        setattr(tensors[name], field, value)
    return tensors


HUGE = 2**64 - 1

LIES: dict[str, tuple[File, str]] = {
    "tensor count": (gb.small_file(num_tensors=HUGE), "tensor_count"),
    "tensor count within the limit": (gb.small_file(num_tensors=60000), "tensor_count"),
    "one tensor more": (gb.small_file(num_tensors=12), "tensor 11 name"),
    "key count": (gb.small_file(num_keys=HUGE), "metadata_kv_count"),
    "one key more": (gb.small_file(num_keys=15), "tensor 0 name"),
    "key twice": (File([entry("a", U8, b"\1"), entry("a", U8, b"\1")]), "a"),
    "key too long": (File([entry("k" * 70000, U8, b"\1")]), "metadata key 0"),
    "key length": (File([struct.pack("<Q", HUGE) + b"a" * 50]), "metadata key 0"),
    "key not UTF-8": (File([entry(b"\xff\xfe", U8, b"\1")]), "metadata key 0"),
    "value type": (File([entry("a", 13, b"\0" * 40)]), "a"),
    "bool of 2": (File([entry("a", BOOL, b"\2")]), "a"),
    "string length": (File([entry("a", STR, struct.pack("<Q", HUGE) + b"abc")]), "a"),
    "string past the end": (File([entry("a", STR, struct.pack("<Q", 2000) + b"abc")]), "a"),
    "string not UTF-8": (File([entry("a", STR, string(b"\xc3\x28"))]), "a"),
    "array count": (File([entry("a", ARR, array(U8, [], HUGE))]), "a"),
    "array count times size overflows": (File([entry("a", ARR, array(U64, [], 2**61))]), "a"),
    "array of strings count": (File([entry("a", ARR, array(STR, [], 4_000_000))]), "a"),
    "array element type": (File([entry("a", ARR, struct.pack("<IQ", 77, 1) + b"\0" * 20)]), "a"),
    "array of bools with a 7": (File([entry("a", ARR, struct.pack("<IQ", BOOL, 1) + b"\7")]), "a"),
    "array string length": (
        File([entry("a", ARR, struct.pack("<IQ", STR, 2) + string("x") + b"\xff" * 8)]),
        "a[1]",
    ),
    "array string not UTF-8": (File([entry("a", ARR, array(STR, ["x", b"\xff"]))]), "a[1]"),
    "array nested too deep": (
        File([entry("a", ARR, struct.pack("<IQ", ARR, 1) * 2000 + array(U8, []))]),
        "a",
    ),
    "alignment not a power of two": (
        gb.small_file(change("general.alignment", U32, scalar(U32, 48))),
        "general.align",
    ),
    "alignment 0": (gb.small_file(change("general.alignment", U32, scalar(U32, 0))), "general.alignment"),
    "alignment huge": (
        gb.small_file(change("general.alignment", U64, scalar(U64, 2**40))),
        "general.alignment",
    ),
    "alignment a string": (
        gb.small_file(change("general.alignment", STR, string("32"))),
        "general.alignment",
    ),
    "tensor twice": (File([], [Tensor("a", (4,)), Tensor("a", (4,))]), "a"),
    "tensor name too long": (File([], [Tensor("n" * 65, (4,))]), "tensor 0 name"),
    "tensor name empty": (File([], [Tensor("", (4,))]), "tensor 0 name"),
    "five dimensions": (File([], [Tensor("a", (1, 1, 1, 1, 1))]), "a"),
    "no dimensions": (File([], [Tensor("a", ())]), "a"),
    "dimension count": (File([], [Tensor("a", (4,), num_dimensions=2**32 - 1)]), "a"),
    "dimension 0": (File([], [Tensor("a", (0, 4))]), "a"),
    "dimensions overflow": (File([], [Tensor("a", (2**32, 2**32), offset=0)]), "a"),
    "dimension huge": (File([], [Tensor("a", (2**63,), offset=0)]), "a"),
    "ragged block": (File([], [Tensor("a", (33, 2), kind=8, offset=0)], tail=999), "a"),
    "offset past the end": (File([], [Tensor("a", (4,), offset=4096)], tail=64), "a"),
    "offset overflows": (File([], [Tensor("a", (4,), offset=2**64 - 32)], tail=64), "a"),
    "offset not aligned": (File([], [Tensor("a", (4,), offset=4)], tail=64), "a"),
    "tensors overlap": (
        File([], [Tensor("a", (16,), offset=0), Tensor("b", (16,), offset=32)], tail=128),
        "b",
    ),
    "data cut off": (gb.small_file(tail=-40), "blk.0.ffn_down.weight"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_in_an_error_that_names_file_and_field(lie: str, tmp_path: Path) -> None:
    file, field = LIES[lie]
    path = write(tmp_path, file.to_bytes())
    with pytest.raises(ModelFormatError) as caught:
        read_gguf(path)
    assert caught.value.path == str(path)
    assert field in caught.value.field
    assert str(path) in str(caught.value)


def test_a_tensor_type_that_ggml_does_not_define(tmp_path: Path) -> None:
    data = bytearray(File([], [Tensor("a", (4,))]).to_bytes())
    data[24 + 9 + 4 + 8] = 200
    with pytest.raises(ModelFormatError, match="a: has the tensor type 200"):
        read_gguf(write(tmp_path, bytes(data)))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "GGUF version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    ],
)
def test_versions_that_are_not_read(data: bytes, what: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=what):
        read_gguf(write(tmp_path, data))


def test_no_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="magic"):
        read_gguf(write(tmp_path, b"PK\3\4 and so on"))
    with pytest.raises(ModelFormatError, match="magic"):
        read_gguf(write(tmp_path, b""))
    with pytest.raises(ModelNotFoundError):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(ModelNotFoundError):
        read_gguf(tmp_path)


def test_an_endless_header_stops_at_the_limit(tmp_path: Path) -> None:
    """A string that claims most of a large, sparse file: refused, and not read."""
    data = File([entry("a", STR, struct.pack("<Q", 3 << 30))]).to_bytes()
    path = write(tmp_path, data)
    with path.open("r+b") as file:
        file.truncate(4 << 30)
    tracemalloc.start()
    with pytest.raises(ModelFormatError, match="limit"):
        read_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


# --- fuzz ----------------------------------------------------------------------------------------

VALID = gb.small_file().to_bytes()
DATA_BYTES = sum(-(-tensor.num_bytes() // 32) * 32 for tensor in gb.small_tensors().values())
HEADER_BYTES = len(VALID) - DATA_BYTES


def check(path: Path) -> None:
    """Opening a file either works or ends in a typed error, within bounds of time and memory."""
    size = path.stat().st_size
    tracemalloc.start()
    start = time.process_time()
    error: OutpaceError | None = None
    try:
        open_checkpoint(path)
    except OutpaceError as caught:
        error = caught
    finally:
        seconds = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert error is None or str(path) in str(error)
    assert not isinstance(error, ModelFormatError) or error.field
    assert peak < 20 * size + (1 << 20)
    assert seconds < 2


def test_the_fuzzed_file_is_valid(tmp_path: Path) -> None:
    assert open_checkpoint(write(tmp_path, VALID)).spec.num_layers == 1


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, VALID)
    for size in [*range(HEADER_BYTES + 1), *range(HEADER_BYTES, len(VALID), 997)]:
        path.write_bytes(VALID[:size])
        with pytest.raises(ModelFormatError) as caught:
            open_checkpoint(path)
        assert caught.value.path == str(path)


fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(flips=st.lists(st.tuples(st.integers(0, HEADER_BYTES), st.integers(0, 7)), min_size=1, max_size=6))
def test_flipped_bits(flips: list[tuple[int, int]], tmp_path: Path) -> None:
    data = bytearray(VALID)
    for position, bit in flips:
        data[position] ^= 1 << bit
    check(write(tmp_path, bytes(data)))


EXTREMES = [
    0,
    1,
    7,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 32,
    2**64 - 1,
]


@fuzz
@given(
    position=st.integers(4, HEADER_BYTES),
    value=st.sampled_from(EXTREMES) | st.integers(0, 2**64 - 1),
    width=st.sampled_from([4, 8]),
    cut=st.none() | st.integers(24, len(VALID)),
)
def test_lying_numbers(position: int, value: int, width: int, cut: int | None, tmp_path: Path) -> None:
    data = bytearray(VALID)
    data[position : position + width] = value.to_bytes(8, "little")[:width]
    check(write(tmp_path, bytes(data[:cut])))


@fuzz
@given(position=st.integers(4, HEADER_BYTES), removed=st.integers(0, 64), inserted=st.binary(max_size=64))
def test_bytes_lost_and_gained(position: int, removed: int, inserted: bytes, tmp_path: Path) -> None:
    check(write(tmp_path, VALID[:position] + inserted + VALID[position + removed :]))


@fuzz
@given(data=st.binary(max_size=400))
def test_any_bytes_after_the_magic(data: bytes, tmp_path: Path) -> None:
    check(write(tmp_path, b"GGUF" + struct.pack("<I", 3) + data))


_METADATA_KEYS = [key for key in gb.small_entries() if key != "general.architecture"]


@fuzz
@given(
    key=st.sampled_from(
        [
            *_METADATA_KEYS,
            "llama.rope.dimension_count",
            "llama.attention.key_length",
            "llama.rope.scaling.type",
            "llama.vocab_size",
            "llama.expert_count",
            "llama.attention.sliding_window",
            "tokenizer.chat_template",
            "split.count",
        ]
    ),
    value=st.one_of(
        st.sampled_from(EXTREMES).map(lambda v: (U64, scalar(U64, v))),
        st.floats(width=32).map(lambda v: (F32, scalar(F32, v))),
        st.integers(-(2**31), 2**31 - 1).map(lambda v: (I32, scalar(I32, v))),
        st.booleans().map(lambda v: (BOOL, scalar(BOOL, v))),
        st.text(max_size=20).map(lambda v: (STR, string(v))),
        st.lists(st.text(max_size=5), max_size=50).map(lambda v: (ARR, array(STR, v))),
        st.lists(st.integers(0, 9), max_size=50).map(lambda v: (ARR, array(I32, v))),
        st.just((ARR, struct.pack("<IQ", ARR, 1) + array(U8, [1]))),
    ),
)
def test_well_formed_metadata_of_the_wrong_kind(key: str, value: tuple[int, bytes], tmp_path: Path) -> None:
    check(write(tmp_path, gb.small_file(change(key, *value)).to_bytes()))
