"""Stop strings: found wherever the text is cut, and nothing held back that need not be."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outpace.errors import InvalidParameterError
from outpace.text.stop import StopMatcher

STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=5)


def naive(text: str, stops: list[str]) -> tuple[int, int] | None:
    """(start, end) of the match that is complete first, the longest of those."""
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return end - max(lengths), end
    return None


def needed(text: str, stops: list[str]) -> int:
    """Characters at the end of `text` that may be the start of a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


@settings(max_examples=800)
@given(STOPS, st.lists(st.text("ab", max_size=6), max_size=8))
def test_any_stops_in_any_pieces(stops: list[str], pieces: list[str]) -> None:
    matcher = StopMatcher(stops)
    emitted, seen = "", ""
    for piece in pieces:
        before = seen
        seen += piece
        text, stopped = matcher.push(piece)
        emitted += text
        match = naive(seen, stops)
        assert stopped is (match is not None)
        if match is not None:
            assert match[1] > len(before) or naive(before, stops)
            assert emitted == seen[: match[0]]
            assert matcher.push("more") == ("", True)
            assert matcher.flush() == ""
            assert matcher.found == seen[match[0] : match[1]]
            return
        assert matcher.found is None
        assert emitted == seen[: len(seen) - needed(seen, stops)]
    assert emitted + matcher.flush() == seen


@settings(max_examples=200)
@given(STOPS, st.text("ab", max_size=30))
def test_the_split_does_not_matter(stops: list[str], text: str) -> None:
    at_once, one_by_one = StopMatcher(stops), StopMatcher(stops)
    whole, stopped = at_once.push(text)
    parts = [one_by_one.push(character) for character in text]
    assert "".join(part for part, _ in parts) == whole
    assert any(found for _, found in parts) is stopped
    assert at_once.flush() == one_by_one.flush()


def test_a_stop_inside_a_longer_one_ends_it() -> None:
    assert StopMatcher(["abcdef", "cd"]).push("xabcdef") == ("xab", True)


def test_of_two_that_end_together_the_longer_goes() -> None:
    assert StopMatcher(["d", "bcd"]).push("abcd") == ("a", True)


def test_a_false_start_is_let_out() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.push("hi\n\nUs") == ("hi", False)
    assert matcher.push("able\n") == ("\n\nUsable", False)
    assert matcher.push("\nUser: no") == ("", True)


def test_without_stops_everything_passes() -> None:
    matcher = StopMatcher(())
    assert matcher.push("text") == ("text", False)
    assert matcher.flush() == ""


def test_characters_beyond_the_basic_plane() -> None:
    assert StopMatcher(["🛑"]).push("go 🟢 stop 🛑 x") == ("go 🟢 stop ", True)


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="empty") as caught:
        StopMatcher(["a", ""])
    assert caught.value.parameter == "stop"


def test_linear_in_the_text_whatever_the_stop() -> None:
    matcher = StopMatcher(["a" * 20_000 + "b"])
    start = time.process_time()
    for _ in range(1000):
        matcher.push("a" * 300)
    assert time.process_time() - start < 10
    assert len(matcher.flush()) == 20_000
