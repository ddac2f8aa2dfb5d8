"""How much time and memory a chat template may use: the checks, apart from where jinja2 makes them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

MAX_TEXT = 1 << 26
"""Characters in one string that a template makes, and items in one list."""
MAX_NODES = 1 << 20
"""Values inside one list or dict that a template makes, counted as often as they would be written."""
MAX_SECONDS = 5.0
"""A render may take."""
_ALLOWANCE, _ALLOWANCE_FACTOR = (
    1 << 26,
    1 << 10,
)  # characters made in one render; the factor is per input character
_MAX_INTEGER_BITS = 1 << 14
_WIDE_FIELD = {"%": re.compile(r"%[^a-zA-Z%]*\d{6}"), "{": re.compile(r"\{[^{}]*:[^{}]*\d{6}")}


class TemplateLimitError(Exception):
    """A template asked for more time or memory than any honest one needs."""


class Budget:
    """What one render may still use."""

    __slots__ = ("_characters", "_deadline")

    def __init__(self, input_characters: int) -> None:
        self._characters = _ALLOWANCE + _ALLOWANCE_FACTOR * input_characters
        self._deadline = time.monotonic() + MAX_SECONDS

    def tick(self) -> None:
        """One loop round or call."""
        if time.monotonic() > self._deadline:
            raise TemplateLimitError(f"it ran for more than {MAX_SECONDS:g} seconds")

    def charge(self, size: int) -> None:
        """`size` characters or items were made."""
        self._characters -= size
        if self._characters < 0:
            raise TemplateLimitError("it made too much text")


def check_size(size: int) -> None:
    """Refuse a text or list of `size` before it is made."""
    if size > MAX_TEXT:
        raise TemplateLimitError(f"it asked for a text or list of {size} (the limit is {MAX_TEXT})")


def _size(value: object) -> int:
    """Characters, or items, or 32 for what is written shortly."""
    return len(cast(str, value)) if isinstance(value, str | bytes | list | tuple | dict) else 32


def count_nodes(value: object) -> None:
    """Refuse a value whose written form would be endless, such as a list of lists of itself, 60 deep."""
    pending: list[object] = [value]
    seen = 0
    while pending:
        item = pending.pop()
        seen += 1
        if seen > MAX_NODES:
            raise TemplateLimitError(f"it made a value of more than {MAX_NODES} parts")
        if isinstance(item, dict):
            pending.extend(cast(dict[object, object], item).values())
        elif isinstance(item, list | tuple):
            pending.extend(cast(list[object], item))


def _check_replace(text: object, old: object, new: object) -> None:
    if isinstance(text, str) and isinstance(old, str):
        check_size(len(text) + text.count(old) * _size(new))


def _check_join(separator: object, items: object) -> None:
    if isinstance(items, list | tuple):
        parts = cast(list[object], items)
        check_size(sum(map(_size, parts)) + len(parts) * _size(separator))


def check_format(text: object, marker: str, values: Iterable[object]) -> None:
    """Every place of a format may take the longest value, or a width that it spells out or is given."""
    if not isinstance(text, str):
        return
    if _WIDE_FIELD[marker].search(text):
        raise TemplateLimitError("it formats with a width of six digits")
    given_width = "*" in text if marker == "%" else text.count("{") > 1
    widest = max(
        (abs(value) if given_width and isinstance(value, int) else _size(value) for value in values),
        default=0,
    )
    check_size(len(text) + text.count(marker) * (widest + 100_000))


def _check_numbers(arguments: Iterable[object]) -> None:
    for value in arguments:
        if isinstance(value, int):
            check_size(abs(value))


def check_method(method: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Before a call: the methods of text and numbers that can make much out of little."""
    method = getattr(method, "__wrapped__", method)  # the sandbox wraps `format`
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(owner, str | bytes | int):
        return
    arguments = [*args, *kwargs.values()]
    _check_numbers(arguments)
    if name in ("format", "format_map", "translate"):
        values = [
            v
            for a in arguments
            for v in (cast(dict[str, object], a).values() if isinstance(a, dict) else [a])
        ]
        check_format(owner, "{", values)
        if name == "translate":
            check_size(_size(owner) * max(map(_size, values), default=0))
    elif name == "replace" and len(arguments) > 1:
        _check_replace(owner, arguments[0], arguments[1])
    elif name == "join" and arguments:
        _check_join(owner, arguments[0])
    elif name == "expandtabs":
        check_size(_size(owner) * max((a for a in arguments if isinstance(a, int)), default=8))


def check_filter(name: str, value: object, arguments: list[object]) -> None:
    """Before a filter runs on `value`: the ones that can make much out of little."""
    if name in ("batch", "center", "indent", "slice", "tojson"):
        _check_numbers(arguments)
    if name == "replace" and len(arguments) > 1:
        _check_replace(value, arguments[0], arguments[1])
    elif name == "join":
        _check_join(arguments[0] if arguments else "", value)
    elif name == "format":
        check_format(value, "%", arguments)
    elif name in ("indent", "tojson", "wordwrap"):
        each = max((a if isinstance(a, int) else _size(a) for a in arguments), default=4)
        if name == "indent":
            check_size(((value.count("\n") if isinstance(value, str) else 0) + 1) * each)
        elif name == "tojson" or any(isinstance(a, str) for a in arguments):
            check_size(_size(value) * each)
    elif name == "round" and any(isinstance(a, int) and abs(a) > 300 for a in arguments):
        raise TemplateLimitError("it rounds to more than 300 digits")


def check_operator(operator: str, left: object, right: object) -> None:
    """Before `left operator right`, for + * ** and %."""
    if operator == "%" and isinstance(left, str):
        values = cast(tuple[object, ...], right) if isinstance(right, tuple) else (right,)
        if isinstance(right, dict):
            values = tuple(cast(dict[str, object], right).values())
        check_format(left, "%", values)
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (max(right, 0) if operator == "**" else 1) + right.bit_length()
        if bits > _MAX_INTEGER_BITS:
            raise TemplateLimitError("it computes with integers of thousands of digits")
    elif operator == "*":
        for sized, times in ((left, right), (right, left)):
            if isinstance(times, int) and not isinstance(sized, int | float):
                check_size(_size(sized) * max(times, 0))
    elif operator == "+":
        check_size(_size(left) + _size(right))
