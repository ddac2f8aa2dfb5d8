"""JSON objects from files that are not trusted: bounded in size, no key twice, errors that name the file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import cast

from outpace.errors import ModelFormatError, ModelNotFoundError


class _DuplicateKeyError(ValueError):
    """An object has a key twice."""


def read_object(path: Path, max_bytes: int) -> dict[str, object]:
    """The object in a file of at most `max_bytes`. Raises `ModelFormatError`, `ModelNotFoundError`."""
    try:
        with path.open("rb") as file:
            text = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > max_bytes:
        raise ModelFormatError(path, "file", f"has more than {max_bytes} bytes, the limit")
    return parse_object(path, text, "file")


def parse_object(path: Path, text: bytes, field: str) -> dict[str, object]:
    """The object that a file's bytes spell; `field` names them in errors."""
    try:
        value: object = json.loads(text.decode(), object_pairs_hook=_object)
    except RecursionError:
        raise ModelFormatError(path, field, "nests too deep") from None
    except ValueError as error:  # also UnicodeDecodeError and integers of thousands of digits
        raise ModelFormatError(path, field, f"is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise ModelFormatError(path, field, "is not a JSON object")
    return cast("dict[str, object]", value)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _DuplicateKeyError(f"the key {twice[:100]!r} appears twice in one object")
    return value
