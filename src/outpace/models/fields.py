"""Typed access to a model file's metadata, GGUF's or config.json's, with errors that name file and field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from outpace.errors import ModelFormatError


class Fields:
    """The values of one file, or of one object inside it. None counts as absent."""

    def __init__(self, path: Path, values: Mapping[str, object], prefix: str = "") -> None:
        """`values` of the file at `path`; `prefix` goes before their names in errors."""
        self.path = path
        self._values = values
        self._prefix = prefix

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self._get(key) is not None

    def is_null(self, key: str) -> bool:
        """Whether the field is there and null."""
        return key in self._values and self._values[key] is None

    def raw(self, key: str) -> object:
        """The value as it is; None where there is none."""
        return self._get(key)

    def integer(self, key: str, minimum: int, maximum: int, default: int | None = None) -> int:
        """An integer within limits, both included. A list of equal integers, one a layer, counts as one."""
        value = _one_for_all(self._get(key, default))
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, self._not_a("an integer", value))
        if not minimum <= value <= maximum:
            raise self.error(key, f"is {_short(value)}, not within {minimum} to {maximum}")
        return value

    def number(self, key: str, above: float, maximum: float, default: float | None = None) -> float:
        """A number greater than `above` and at most `maximum`."""
        value = _one_for_all(self._get(key, default))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, self._not_a("a number", value))
        if not (above < value <= maximum and math.isfinite(value)):
            raise self.error(key, f"is {_short(value)}, not above {above:g} and at most {maximum:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, self._not_a("a boolean", value))
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(key, self._not_a("a string", value))
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        value = self._get(key)
        if not isinstance(value, list):
            raise self.error(key, self._not_a("a list of strings", value))
        items = cast("list[object]", value)
        if not set(map(type, items)) <= {str}:
            raise self.error(key, "holds something that is not a string")
        return cast("list[str]", items)

    def section(self, key: str) -> Fields | None:
        """A nested object; None where there is none."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, self._not_a("an object", value))
        return Fields(self.path, cast("dict[str, object]", value), f"{self._prefix}{key}.")

    def error(self, key: str, problem: str) -> ModelFormatError:
        """An error that names the file and the field."""
        return ModelFormatError(self.path, self._prefix + key, problem)

    def _get(self, key: str, default: object = None) -> object:
        value = self._values.get(key)
        return default if value is None else value

    def _not_a(self, what: str, value: object) -> str:
        return "is missing" if value is None else f"is {_short(value)}, not {what}"


def _one_for_all(value: object) -> object:
    """The one value of an array whose values are all the same (some fields may differ by layer)."""
    if isinstance(value, np.ndarray):
        array = cast("NDArray[np.generic]", value)
        if array.ndim == 1 and array.size and bool((array == array[0]).all()):
            item: object = array[0].item()
            return item
    return cast("object", value)


def _short(value: object) -> str:
    if isinstance(value, np.ndarray | list | dict):
        return f"a {'mapping' if isinstance(value, dict) else 'list'}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
