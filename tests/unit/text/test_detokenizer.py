"""Incremental text equals whole text, and no half character is ever let out."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import small_scored, source, tokenizer

from outpace.errors import InvalidParameterError
from outpace.text.bpe import BYTE_CHARACTERS
from outpace.text.detokenizer import Detokenizer
from outpace.text.tokenizer import Tokenizer

# One token for each byte, the worst that a model can do to UTF-8, and a control token.
RAW = tokenizer(source([*BYTE_CHARACTERS.values(), "<ctl>"], [1] * 256 + [3]))
BYTE_ID = {byte: i for i, byte in enumerate(BYTE_CHARACTERS)}
SCORED = small_scored()

# Bytes that meet every rule of UTF-8: leads, continuations, what is overlong, surrogates, out of range.
EDGE_BYTES = [
    0x00,
    0x20,
    0x41,
    0x7F,
    0x80,
    0x8F,
    0x90,
    0x9F,
    0xA0,
    0xBF,
    0xC0,
    0xC2,
    0xDF,
    0xE0,
    0xE2,
    0xED,
    0xEF,
    0xF0,
    0xF1,
    0xF4,
    0xF5,
    0xFF,
]
CHUNKS = st.one_of(
    st.lists(st.sampled_from(EDGE_BYTES), max_size=12).map(bytes),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8).map(str.encode),
    st.binary(max_size=12),
)


def in_pieces(detokenizer: Detokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    pushed = [detokenizer.push(ids[a:b]) for a, b in itertools.pairwise(bounds)]
    return [*pushed, detokenizer.flush()]


@settings(max_examples=500)
@given(st.lists(CHUNKS, max_size=6).map(b"".join), st.lists(st.integers(0, 60), max_size=8))
def test_any_bytes_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    ids = [BYTE_ID[byte] for byte in data]
    pieces = in_pieces(Detokenizer(RAW), ids, cuts)
    assert "".join(pieces) == RAW.decode(ids) == data.decode("utf-8", "replace")


@settings(max_examples=500)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=20))
def test_byte_by_byte_gives_whole_characters_as_soon_as_they_are_whole(text: str) -> None:
    detokenizer = Detokenizer(RAW)
    for character in text:
        encoded = character.encode()
        assert [detokenizer.push([BYTE_ID[byte]]) for byte in encoded] == [""] * (len(encoded) - 1) + [
            character
        ]
    assert detokenizer.flush() == ""


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 49151), max_size=30), cuts=st.lists(st.integers(0, 30), max_size=6))
def test_random_ids_of_a_real_model(smollm: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    assert "".join(in_pieces(Detokenizer(smollm), ids, cuts)) == smollm.decode(ids)
    shown = Detokenizer(smollm, skip_special=False)
    assert "".join(in_pieces(shown, ids, cuts)) == smollm.decode(ids, skip_special=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, SCORED.vocab_size - 1), max_size=20), st.lists(st.integers(0, 20), max_size=6))
def test_scored_takes_one_space_from_the_start(ids: list[int], cuts: list[int]) -> None:
    whole = b"".join(SCORED.token_bytes(i) for i in ids).decode("utf-8", "replace")
    assert "".join(in_pieces(Detokenizer(SCORED), ids, cuts)) == SCORED.decode(ids) == whole.removeprefix(" ")
    assert "".join(in_pieces(Detokenizer(SCORED, continues=True), ids, cuts)) == whole


def test_special_tokens_are_silent_and_do_not_cut_a_character() -> None:
    control = RAW.token_id("<ctl>")
    euro = [BYTE_ID[byte] for byte in "€".encode()]
    assert RAW.decode([*euro[:2], control, euro[2]]) == "€"
    detokenizer = Detokenizer(RAW)
    assert [detokenizer.push([i]) for i in (*euro[:2], control, euro[2])] == ["", "", "", "€"]


def test_an_unfinished_character_is_replaced_at_the_end_only() -> None:
    detokenizer = Detokenizer(RAW)
    assert detokenizer.push([BYTE_ID[0xF0], BYTE_ID[0x9F], BYTE_ID[0x98]]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("token_id", [257, -1, 10**9])
def test_ids_out_of_range(token_id: int) -> None:
    with pytest.raises(InvalidParameterError, match="out of range"):
        Detokenizer(RAW).push([token_id])


def test_a_push_takes_microseconds(smollm: Tokenizer) -> None:
    """3 us on a quiet machine; the bound is loose because CI is not quiet. Re-decoding would take 100."""
    ids = smollm.encode("def main():\n    print('hello, wörld 🌍')\n" * 300)
    detokenizer = Detokenizer(smollm)
    detokenizer.push(ids)
    start = time.process_time()
    for token_id in ids:
        detokenizer.push((token_id,))
    assert (time.process_time() - start) / len(ids) < 15e-6
