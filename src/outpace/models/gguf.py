"""A fast and suspicious reader of GGUF v2 and v3: metadata and the tensor table, no tensor data.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

Nothing in the file is believed: every count, length, offset, type and shape is checked against the
file's size before it is used, so a damaged or hostile file costs no more memory than a small multiple
of its own header, and ends in a `ModelFormatError` that names the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from outpace.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
from outpace.models.ggml_types import GGML_TYPES
from outpace.models.gguf_cursor import MAX_HEADER_BYTES, Cursor, GGUFValue, HeaderLongerError

MAGIC = b"GGUF"

MAX_METADATA_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = (1 << 16) - 1  # the format's own limit
MAX_TENSOR_NAME_BYTES = 64  # the format's own limit
MAX_DIMENSIONS = 4  # the format's own limit
MAX_ALIGNMENT = 1 << 20

# Enough for every tokenizer we know of (a vocabulary of 2**18 takes about 7 MB; one of 2**16, as small models
# have them, 2 MB). When it is not, the header is read again, whole.
_FIRST_READ_BYTES = 8 << 20
_SMALL_READ_BYTES = 2 << 20
_SMALL_FILE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One row of the tensor table, checked against the file."""

    name: str  # as in the file
    path: Path
    dtype: str  # ggml's name, perhaps of a type that Outpace cannot run
    shape: tuple[int, ...]  # slowest dimension first: (rows, columns)
    offset: int  # bytes from the start of the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A GGUF file's metadata and tensor table."""

    path: Path
    version: int
    alignment: int  # bytes
    data_offset: int  # bytes from the start of the file to the tensors' data
    metadata: Mapping[str, GGUFValue]
    tensors: Mapping[str, GGUFTensor]


def is_gguf(path: Path) -> bool:
    """Whether the file starts with GGUF's magic number."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def read_gguf(path: Path) -> GGUFFile:
    """Read and check a file's header.

    Raises `ModelFormatError` for a damaged file, `UnsupportedModelError` for a version or a byte order
    that is not read, `ModelNotFoundError` where there is no such file.
    """
    try:
        with path.open("rb") as file:
            file_size = file.seek(0, 2)
            try:
                first = _SMALL_READ_BYTES if file_size < _SMALL_FILE_BYTES else _FIRST_READ_BYTES
                return _parse(path, file, file_size, first)
            except HeaderLongerError:
                return _parse(path, file, file_size, MAX_HEADER_BYTES)
    except HeaderLongerError as error:
        raise ModelFormatError(
            path, error.field, f"the header goes on past {MAX_HEADER_BYTES >> 20} MiB, the limit"
        ) from None
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(path: Path, file: BinaryIO, file_size: int, read_bytes: int) -> GGUFFile:
    file.seek(0)
    reader = _Reader(path, file.read(min(read_bytes, file_size)), file_size)
    version, num_tensors, num_keys = reader.header()
    metadata = reader.metadata(num_keys)
    alignment = reader.alignment(metadata)
    tensors, data_offset = reader.tensors(num_tensors, alignment)
    return GGUFFile(path, version, alignment, data_offset, metadata, tensors)


class _Reader(Cursor):
    """The parts of a header, in the order in which they come."""

    def header(self) -> tuple[int, int, int]:
        """(version, number of tensors, number of metadata keys)."""
        if self._data[:4] != MAGIC:
            raise self.error("magic", f"is {self._data[:4]!r}, not {MAGIC!r}: this is not a GGUF file")
        self.position = 4
        version = self.u32("version")
        if version not in (2, 3):
            big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            what = "a big-endian file" if big_endian else f"GGUF version {version}"
            raise UnsupportedModelError(
                f"{self.path}: version: {what} is not read; convert it to GGUF version 3, little-endian"
            )
        num_tensors = self.count("tensor_count", MAX_TENSORS, 8 + 1 + 4 + 8 + 4 + 8)
        num_keys = self.count("metadata_kv_count", MAX_METADATA_KEYS, 8 + 1 + 4 + 1)
        return version, num_tensors, num_keys

    def metadata(self, num_keys: int) -> dict[str, GGUFValue]:
        """All keys and values."""
        metadata: dict[str, GGUFValue] = {}
        for index in range(num_keys):
            key = self.string(f"metadata key {index}", MAX_KEY_BYTES)
            if not key:
                raise self.error(f"metadata key {index}", "is empty")
            if key in metadata:
                raise self.error(key, "this metadata key appears twice")
            metadata[key] = self.value(self.u32(key), key)
        return metadata

    def alignment(self, metadata: Mapping[str, GGUFValue]) -> int:
        """Bytes to which tensors' data is aligned."""
        value = metadata.get("general.alignment", 32)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error("general.alignment", f"is a {type(value).__name__}, not an integer")
        if not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
            raise self.error("general.alignment", f"is {value}, not a power of two from 8 to {MAX_ALIGNMENT}")
        return value

    def tensors(self, num_tensors: int, alignment: int) -> tuple[dict[str, GGUFTensor], int]:
        """The tensor table by name, and where the data starts."""
        tensors: dict[str, GGUFTensor] = {}
        for index in range(num_tensors):
            tensor = self._tensor(index, alignment)
            if tensor.name in tensors:
                raise self.error(tensor.name, "this tensor appears twice")
            tensors[tensor.name] = tensor
        data_offset = -(-self.position // alignment) * alignment
        placed = {name: replace(t, offset=data_offset + t.offset) for name, t in tensors.items()}
        self._check_layout(placed)
        return placed, data_offset

    def _tensor(self, index: int, alignment: int) -> GGUFTensor:
        name = self.string(f"tensor {index} name", MAX_TENSOR_NAME_BYTES)
        if not name:
            raise self.error(f"tensor {index} name", "is empty")
        num_dimensions = self.u32(f"{name} dimensions")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self.error(name, f"has {num_dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
        dimensions = [self.u64(f"{name} dimension {i}") for i in range(num_dimensions)]
        if 0 in dimensions:
            raise self.error(name, f"has the empty shape {dimensions}")
        type_id = self.u32(f"{name} type")
        if type_id not in GGML_TYPES:
            raise self.error(name, f"has the tensor type {type_id}, which ggml does not define")
        kind = GGML_TYPES[type_id]
        if dimensions[0] % kind.block_size:
            raise self.error(
                name,
                f"has rows of {dimensions[0]} elements, not a multiple of {kind.name}'s {kind.block_size}",
            )
        num_bytes = math.prod(dimensions) // kind.block_size * kind.block_bytes
        offset = self.u64(f"{name} offset")
        if offset % alignment:
            raise self.error(name, f"starts at offset {offset}, not a multiple of the alignment {alignment}")
        return GGUFTensor(name, self.path, kind.name, tuple(reversed(dimensions)), offset, num_bytes)

    def _check_layout(self, tensors: Mapping[str, GGUFTensor]) -> None:
        previous: GGUFTensor | None = None
        for tensor in sorted(tensors.values(), key=lambda t: t.offset):
            end = tensor.offset + tensor.num_bytes
            if end > self.file_size:
                raise self.error(
                    tensor.name,
                    f"its data ends at byte {end}, the file at {self.file_size}: it is cut off or damaged",
                )
            if previous is not None and previous.offset + previous.num_bytes > tensor.offset:
                raise self.error(tensor.name, f"its data overlaps that of {previous.name}")
            previous = tensor
