"""GGUF models in several files, `name-00001-of-00003.gguf` ..., as llama.cpp's gguf-split writes them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from outpace.errors import ModelFormatError, ModelNotFoundError
from outpace.models.fields import Fields
from outpace.models.gguf import GGUFFile, GGUFTensor, read_gguf

MAX_PARTS = 9999

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)


def read_gguf_model(path: Path) -> GGUFFile:
    """A model's metadata and all its tensors; `path` is its file, or the first of its parts.

    Raises as `read_gguf` does, and `ModelNotFoundError` where a part is missing.
    """
    first = read_gguf(path)
    fields = Fields(path, first.metadata)
    count = fields.integer("split.count", 0, MAX_PARTS, 1)
    if count <= 1:
        return first
    if fields.integer("split.no", 0, count - 1) != 0:
        raise ModelFormatError(path, "split.no", f"this is not the first of {count} parts; give that one")
    tensors = dict(first.tensors)
    for index, part_path in enumerate(_other_parts(path, count), 1):
        part = read_gguf(part_path)
        _check_part(part, index, count)
        _add(tensors, part)
    stated = fields.integer("split.tensors.count", 0, 1 << 31, len(tensors))
    if stated != len(tensors):
        raise ModelFormatError(path, "split.tensors.count", f"is {stated}, but the parts hold {len(tensors)}")
    return replace(first, tensors=tensors)


def _other_parts(path: Path, count: int) -> list[Path]:
    match = _PART.fullmatch(path.name)
    if match is None or int(match[2]) != 1 or int(match[3]) != count:
        raise ModelNotFoundError(
            f"{path}: is the first of {count} parts, but not named so; call it "
            f"NAME-00001-of-{count:05d}.gguf and put the others beside it"
        )
    paths = [path.with_name(f"{match[1]}-{i:05d}-of-{match[3]}{match[4]}") for i in range(2, count + 1)]
    if missing := [part for part in paths if not part.is_file()]:
        raise ModelNotFoundError(f"{missing[0]}: this part of the model is missing")
    return paths


def _check_part(part: GGUFFile, index: int, count: int) -> None:
    fields = Fields(part.path, part.metadata)
    if (got := fields.integer("split.no", 0, MAX_PARTS)) != index:
        raise fields.error("split.no", f"is {got}, not {index}")
    if (got := fields.integer("split.count", 0, MAX_PARTS)) != count:
        raise fields.error("split.count", f"is {got}, but the first part says {count}")


def _add(tensors: dict[str, GGUFTensor], part: GGUFFile) -> None:
    for name, tensor in part.tensors.items():
        if name in tensors:
            raise ModelFormatError(part.path, name, f"this tensor is in {tensors[name].path} too")
        tensors[name] = tensor
