"""A suspicious reader of safetensors headers, single files and sharded directories; no tensor data.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from outpace.errors import ModelFormatError, ModelNotFoundError
from outpace.models.json_file import parse_object, read_object

MAX_HEADER_BYTES = 8 << 20  # enough for about 70,000 tensors in one file
MAX_TENSORS = 1 << 17
MAX_DIMENSIONS = 8
MAX_SHARDS = 4096

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# safetensors' dtypes: ggml's name and bytes an element.
_DTYPES = {
    "F32": ("F32", 4),
    "F16": ("F16", 2),
    "BF16": ("BF16", 2),
    "F64": ("F64", 8),
    "I64": ("I64", 8),
    "I32": ("I32", 4),
    "I16": ("I16", 2),
    "I8": ("I8", 1),
    "U64": ("U64", 8),
    "U32": ("U32", 4),
    "U16": ("U16", 2),
    "U8": ("U8", 1),
    "BOOL": ("BOOL", 1),
    "F8_E4M3": ("F8_E4M3", 1),
    "F8_E5M2": ("F8_E5M2", 1),
}


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """One tensor of a header, checked against its file."""

    name: str  # as in the file
    path: Path
    dtype: str  # ggml's name where it has one
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    num_bytes: int


def read_safetensors_directory(directory: Path) -> dict[str, SafetensorsTensor]:
    """All tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Raises `ModelFormatError` for damaged files and for an index that disagrees with its shards,
    `ModelNotFoundError` where the directory has neither file.
    """
    index = directory / INDEX_NAME
    if not index.is_file():
        single = directory / SINGLE_NAME
        if not single.is_file():
            raise ModelNotFoundError(f"{directory}: has neither {SINGLE_NAME} nor {INDEX_NAME}")
        return read_safetensors(single)
    shards: dict[str, dict[str, SafetensorsTensor]] = {}
    tensors: dict[str, SafetensorsTensor] = {}
    for name, shard in _weight_map(index).items():
        if shard not in shards:
            if len(shards) == MAX_SHARDS:
                raise ModelFormatError(index, "weight_map", f"names more than {MAX_SHARDS} files")
            shards[shard] = read_safetensors(directory / shard)
        if name not in shards[shard]:
            raise ModelFormatError(
                directory / shard, name, f"this tensor is missing; {INDEX_NAME} says it is here"
            )
        tensors[name] = shards[shard][name]
    return tensors


def shard_names(index: Path) -> set[str]:
    """The files that an index names. Raises `ModelFormatError`, `ModelNotFoundError`."""
    return set(_weight_map(index).values())


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, each a plain name in the same directory."""
    weight_map = read_object(index, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelFormatError(index, "weight_map", "is missing or not an object")
    for name, shard in cast("dict[str, object]", weight_map).items():
        if not isinstance(shard, str) or "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise ModelFormatError(
                index, f"weight_map.{name[:100]}", "is not the name of a .safetensors file"
            )
    return cast("dict[str, str]", weight_map)


def read_safetensors(path: Path) -> dict[str, SafetensorsTensor]:
    """The tensors of one file. Raises `ModelFormatError`, or `ModelNotFoundError` where there is no file."""
    try:
        with path.open("rb") as file:
            file_size = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ModelFormatError(path, "header length", f"the file has only {file_size} bytes")
            header_bytes = int.from_bytes(prefix, "little")
            if header_bytes > min(MAX_HEADER_BYTES, file_size - 8):
                raise ModelFormatError(
                    path,
                    "header length",
                    f"is {header_bytes}; the limit is {min(MAX_HEADER_BYTES, file_size - 8)}",
                )
            text = file.read(header_bytes)
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error
    return _tensors(path, parse_object(path, text, "header"), 8 + header_bytes, file_size)


def _tensors(
    path: Path, header: Mapping[str, object], data_offset: int, file_size: int
) -> dict[str, SafetensorsTensor]:
    if len(header) > MAX_TENSORS:
        raise ModelFormatError(path, "header", f"has {len(header)} entries; the limit is {MAX_TENSORS}")
    tensors = {
        name: _tensor(path, name, entry, data_offset, file_size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    end = data_offset
    for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.num_bytes)):
        if tensor.offset != end:
            raise ModelFormatError(
                path,
                tensor.name,
                f"its data starts at byte {tensor.offset}, not where the data before it ends, {end}",
            )
        end += tensor.num_bytes
    if end != file_size:
        raise ModelFormatError(path, "header", f"describes {end} bytes, but the file has {file_size}")
    return tensors


def _tensor(path: Path, name: str, entry: object, data_offset: int, file_size: int) -> SafetensorsTensor:
    field = name if name and name.isprintable() and len(name) <= 120 else ascii(name[:100])
    if not isinstance(entry, dict):
        raise ModelFormatError(path, field, "is not an object")
    values = cast("dict[str, object]", entry)
    dtype = values.get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ModelFormatError(
            path, f"{field}.dtype", f"is {_shown(dtype)}, which safetensors does not define"
        )
    shape = _integers(path, f"{field}.shape", values.get("shape"))
    if len(shape) > MAX_DIMENSIONS:
        raise ModelFormatError(
            path, f"{field}.shape", f"has {len(shape)} dimensions; the limit is {MAX_DIMENSIONS}"
        )
    offsets = _integers(path, f"{field}.data_offsets", values.get("data_offsets"))
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= file_size - data_offset:
        raise ModelFormatError(
            path,
            f"{field}.data_offsets",
            f"is {_shown(list(offsets))}, not a range in the {file_size - data_offset} bytes of data; "
            "the file is cut off or damaged",
        )
    ggml_name, item_bytes = _DTYPES[dtype]
    num_bytes = math.prod(shape) * item_bytes
    if num_bytes != offsets[1] - offsets[0]:
        raise ModelFormatError(
            path,
            f"{field}.data_offsets",
            f"spans {offsets[1] - offsets[0]} bytes where the shape needs {num_bytes}",
        )
    return SafetensorsTensor(name, path, ggml_name, shape, data_offset + offsets[0], num_bytes)


def _integers(path: Path, field: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ModelFormatError(path, field, f"is {_shown(value)}, not a list of integers")
    items = cast("list[object]", value)
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 1 << 63:
            raise ModelFormatError(path, field, f"holds {_shown(item)}, not an integer from 0 to 2**63 - 1")
    return tuple(cast("list[int]", items))


def _shown(value: object) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
