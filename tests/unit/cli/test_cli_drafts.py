"""Speculation shown: colours by proposer, and the line of counts."""

from __future__ import annotations

from engine_harness import byte_tokenizer
from outpace.cli.drafts import COLOURS, PLAIN, DraftPainter, drafts_line
from outpace.types import DraftCount, TokenDelta


def delta(text: str, num_from_draft: int, proposer: str = "suffix") -> TokenDelta:
    ids = tuple(text.encode())
    return TokenDelta("r", 0, ids, text, num_from_draft=num_from_draft, proposer=proposer)


def test_the_drafted_beginning_is_coloured() -> None:
    painter = DraftPainter(byte_tokenizer())
    assert painter.paint(delta("ab", 0)) == "ab"
    assert painter.legend() == ""
    assert painter.paint(delta("abc", 2)) == f"{COLOURS[0]}ab{PLAIN}c"
    assert painter.paint(delta("de", 1, "edit")) == f"{COLOURS[1]}d{PLAIN}e"
    assert painter.paint(delta("fg", 2)) == f"{COLOURS[0]}fg{PLAIN}"
    assert painter.legend() == f"{COLOURS[0]}suffix{PLAIN} · {COLOURS[1]}edit{PLAIN}"


def test_a_character_over_the_border_stays_whole() -> None:
    """Two bytes of one character, of which the first was drafted: nothing is lost, nothing coloured."""
    painter = DraftPainter(byte_tokenizer())
    assert painter.paint(delta("é", 1)) == "é"
    assert painter.paint(delta("xy", 1)) == f"{COLOURS[0]}x{PLAIN}y"


def test_text_that_a_stop_string_held_back_stays_whole() -> None:
    painter = DraftPainter(byte_tokenizer())
    held = TokenDelta("r", 0, tuple(b"abc"), "a", num_from_draft=2, proposer="suffix")
    assert painter.paint(held) == "a"


def test_the_line_of_counts() -> None:
    counts = (DraftCount("suffix", 10, 7), DraftCount("edit", 32, 31))
    assert drafts_line(counts, 20, 0.001) == (
        "drafts accepted: suffix 7 of 10, edit 31 of 32 · 50 µs a step to draft"
    )
