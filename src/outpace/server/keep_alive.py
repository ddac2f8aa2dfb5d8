"""How long a model stays in memory after its last request, as Ollama's users write it."""

from __future__ import annotations

import math
import re

DEFAULT_KEEP_ALIVE = 300.0
"""Seconds, as Ollama has it."""

_FOR_EVER = 1e10  # seconds
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h)")


def parse_keep_alive(value: object) -> float:
    """Seconds from a number of them or a text such as "90", "5m" or "1h30m"; below 0 is for ever (inf).

    Raises `ValueError` for anything else.
    """
    if isinstance(value, str):
        value = _parse(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        value = math.nan
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("no length of time: a number of seconds is, or a text such as 5m")
    return float(value) if 0 <= value < _FOR_EVER else math.inf


def _parse(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    length = text.removeprefix("-")
    parts = list(_PART.finditer(length))
    if not parts or "".join(part[0] for part in parts) != length:
        raise ValueError(f"{text[:40]!r} is no length of time; write seconds, 90s, 5m, 1h30m, or -1 for ever")
    seconds = sum(float(part[1]) * _SECONDS[part[2]] for part in parts)
    return -seconds if length != text else seconds
