"""Thoughts counted in tokens, however the text is cut into tokens and the tokens into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outpace.text.tool_calls.families import THOUGHTS
from outpace.text.tool_calls.thought_tokens import ThoughtTokens

THINK = THOUGHTS[0]


def counted(tokens: list[bytes], sizes: list[int], *, thinking: bool = False) -> int:
    """Push the tokens in pieces of these sizes, and what is left at the end."""
    count = ThoughtTokens(THINK, tokens.__getitem__, thinking=thinking)
    at = result = 0
    for size in [*sizes, len(tokens)]:
        result = count.push(range(at, min(at + size, len(tokens))))
        at = min(at + size, len(tokens))
    return result


def cut(text: str, cuts: set[int]) -> list[bytes]:
    data = text.encode()
    edges = [0, *sorted(each for each in cuts if 0 < each < len(data)), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


@given(
    before=st.sampled_from(["", "\n", "  \n"]),
    thoughts=st.text(max_size=20).filter(lambda text: "</think>" not in text),
    after=st.text(max_size=20),
    cuts=st.sets(st.integers(1, 80)),
    sizes=st.lists(st.integers(0, 5)),
    opened=st.booleans(),
)
def test_up_to_the_end_mark(
    before: str, thoughts: str, after: str, cuts: set[int], sizes: list[int], opened: bool
) -> None:
    head = ("" if opened else f"{before}<think>") + f"{thoughts}</think>"
    tokens = cut(head + after, cuts)
    length, expected = len(head.encode()), 0
    while length > 0:
        length -= len(tokens[expected])
        expected += 1
    assert counted(tokens, sizes, thinking=opened) == expected


@pytest.mark.parametrize("text", ["", " ", "Hello <think>a</think>", "<thin", "<thinner>", "\n\nNo."])
def test_an_answer_without_thoughts(text: str) -> None:
    for size in (1, 3, 100):
        tokens = cut(text, set(range(0, len(text), size)))
        assert counted(tokens, [1] * len(tokens)) == 0


def test_thoughts_that_never_end_are_all_there_is() -> None:
    tokens = cut("<think>a b c", set(range(20)))
    assert counted(tokens, []) == len(tokens)
    assert counted(tokens, [3], thinking=True) == len(tokens)
