"""Lengths of time as Ollama's users write them."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outpace.server.keep_alive import parse_keep_alive


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0), ("0", 0), (90, 90), ("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400),
        ("250ms", 0.25), (" 5m ", 300),
        (-1, math.inf), ("-1", math.inf), ("-5m", math.inf), (10**400, math.inf), (-(10**400), math.inf),
    ],
)  # fmt: skip
def test_lengths(value: float | str, seconds: float) -> None:
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize(
    "value", ["", "soon", "5 m", "m", "5mm5", "5m-", "--5m", "nan", True, [], {}, None, math.nan]
)
def test_what_is_none(value: object) -> None:
    with pytest.raises(ValueError, match="no length of time"):
        parse_keep_alive(value)


@given(st.none() | st.text() | st.floats() | st.integers() | st.lists(st.integers()))
def test_anything(value: object) -> None:
    """A number of seconds, or a `ValueError` and nothing else."""
    with suppress(ValueError):
        assert parse_keep_alive(value) >= 0
