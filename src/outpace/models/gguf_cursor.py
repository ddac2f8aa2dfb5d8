"""A cursor over the start of a GGUF file: values of every type, each checked before it is read."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace import _native
from outpace.errors import ModelFormatError

MAX_HEADER_BYTES = 64 << 20
MAX_STRINGS = 1 << 22  # in one array; the largest vocabularies have about 2**18
MAX_NUMBERS = 1 << 24  # in one array
MAX_ARRAY_DEPTH = 4
MAX_NESTED_ARRAYS = 1 << 16  # in one file

(
    _UINT8,
    _INT8,
    _UINT16,
    _INT16,
    _UINT32,
    _INT32,
    _FLOAT32,
    _BOOL,
    _STRING,
    _ARRAY,
    _UINT64,
    _INT64,
    _FLOAT64,
) = range(13)

_SCALARS = {
    _UINT8: struct.Struct("<B"),
    _INT8: struct.Struct("<b"),
    _UINT16: struct.Struct("<H"),
    _INT16: struct.Struct("<h"),
    _UINT32: struct.Struct("<I"),
    _INT32: struct.Struct("<i"),
    _FLOAT32: struct.Struct("<f"),
    _UINT64: struct.Struct("<Q"),
    _INT64: struct.Struct("<q"),
    _FLOAT64: struct.Struct("<d"),
}

_U32 = _SCALARS[_UINT32]
_U64 = _SCALARS[_UINT64]

GGUFValue = int | float | bool | str | list[str] | NDArray[Any] | list[Any]
"""A metadata value: a scalar, strings, numbers (an array of the file's own type), or a nested list."""


class HeaderLongerError(Exception):
    """The header goes on past the bytes read so far."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class Cursor:
    """Reads values one after another; `position` is the next one's byte."""

    def __init__(self, path: Path, data: bytes, file_size: int) -> None:
        """`data` is the start of the file at `path`, or all of it."""
        self.path = path
        self.file_size = file_size
        self.position = 0
        self._data = data
        self._num_nested = 0

    def value(self, type_id: int, field: str) -> GGUFValue:
        """A metadata value of a type that the file has just named."""
        if type_id == _STRING:
            return self.string(field)
        if type_id == _ARRAY:
            return self._array(field, 1)
        if type_id == _BOOL:
            byte = self._take(1, field)[0]
            if byte > 1:
                raise self.error(field, f"is a bool with the value {byte}, not 0 or 1")
            return byte == 1
        scalar = _SCALARS.get(type_id)
        if scalar is None:
            raise self.error(field, f"has the value type {type_id}, which GGUF does not define")
        value: int | float = scalar.unpack(self._take(scalar.size, field))[0]
        return value

    def _array(self, field: str, depth: int) -> GGUFValue:
        if depth > MAX_ARRAY_DEPTH:
            raise self.error(field, f"nests arrays deeper than {MAX_ARRAY_DEPTH}")
        type_id = self.u32(field)
        if type_id == _STRING:
            return self._strings(self.count(field, MAX_STRINGS, 8), field)
        if type_id == _ARRAY:
            count = self.count(field, MAX_NESTED_ARRAYS, 12)
            self._num_nested += count
            if self._num_nested > MAX_NESTED_ARRAYS:
                raise self.error(field, f"the file nests more than {MAX_NESTED_ARRAYS} arrays, the limit")
            return [self._array(field, depth + 1) for _ in range(count)]
        if type_id not in _SCALARS and type_id != _BOOL:
            raise self.error(field, f"has the element type {type_id}, which GGUF does not define")
        element = np.dtype(np.uint8 if type_id == _BOOL else "<" + _SCALARS[type_id].format[1:])
        count = self.count(field, MAX_NUMBERS, element.itemsize)
        numbers = np.frombuffer(self._take(count * element.itemsize, field), element)
        if type_id != _BOOL:
            return numbers
        if np.any(numbers > 1):
            raise self.error(field, "has a bool that is neither 0 nor 1")
        return numbers.astype(np.bool_)

    def _strings(self, count: int, field: str) -> list[str]:
        # A vocabulary and its merges are 300,000 strings: 0.1 s in Python, 0.02 in the core.
        found = _native.split_strings(self._data, self.position, count)
        if found is None:
            if len(self._data) < min(self.file_size, MAX_HEADER_BYTES):
                raise HeaderLongerError(field)
            return self._strings_one_by_one(count, field)
        strings, self.position = found
        return strings

    def _strings_one_by_one(self, count: int, field: str) -> list[str]:
        """As `_strings`, which knows no errors: this says what is wrong with which string."""
        data, position, end = self._data, self.position, len(self._data)
        unpack = _U64.unpack_from
        last_start = end - 8
        items: list[bytes] = []
        append = items.append
        for index in range(count):
            if position > last_start:
                self.position = position
                raise self._short(f"{field}[{index}]", 8)
            start = position + 8
            position = start + unpack(data, position)[0]
            if position > end:
                self.position = start
                raise self._short(f"{field}[{index}]", position - start)
            append(data[start:position])
        self.position = position
        try:
            return list(map(bytes.decode, items))
        except UnicodeDecodeError:
            index = next(i for i, item in enumerate(items) if not _is_utf8(item))
            raise self.error(f"{field}[{index}]", "is not valid UTF-8") from None

    def string(self, field: str, limit: int = MAX_HEADER_BYTES) -> str:
        """A length and as many bytes of UTF-8, at most `limit`."""
        length = self.u64(field)
        if length > limit:
            raise self.error(field, f"is a string of {length} bytes; the limit is {limit}")
        try:
            return self._take(length, field).decode()
        except UnicodeDecodeError:
            raise self.error(field, "is not valid UTF-8") from None

    def count(self, field: str, limit: int, item_bytes: int) -> int:
        """A number of items that follow, each of `item_bytes` at the least."""
        count = self.u64(field)
        if count > limit:
            raise self.error(field, f"says {count} items; the limit is {limit}")
        room = self.file_size - self.position
        if count * item_bytes > room:
            raise self.error(field, f"says {count} items, but the file has only {room} bytes left")
        return count

    def u32(self, field: str) -> int:
        """An unsigned integer of 4 bytes."""
        value: int = _U32.unpack(self._take(4, field))[0]
        return value

    def u64(self, field: str) -> int:
        """An unsigned integer of 8 bytes."""
        value: int = _U64.unpack(self._take(8, field))[0]
        return value

    def _take(self, num_bytes: int, field: str) -> bytes:
        end = self.position + num_bytes
        if end > len(self._data):
            raise self._short(field, num_bytes)
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _short(self, field: str, num_bytes: int) -> Exception:
        """What to raise where `num_bytes` from here on run past the bytes read."""
        if self.position + num_bytes <= self.file_size:
            return HeaderLongerError(field)
        return self.error(
            field,
            f"needs {num_bytes} bytes, but the file ends at byte {self.file_size}; it is cut off or damaged",
        )

    def error(self, field: str, problem: str) -> ModelFormatError:
        """An error that names the file and the field, for the caller to raise."""
        return ModelFormatError(self.path, _printable(field), problem)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _printable(field: str) -> str:
    """A name from the file, fit for a message: short, without control characters."""
    shown = field if field.isprintable() else ascii(field)
    return shown if len(shown) <= 120 else shown[:117] + "..."
