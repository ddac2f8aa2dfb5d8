"""The tokenizer's own promises: special tokens, ends, bytes, errors, speed."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from vocabularies import PATH, scored_source, small_scored, source, tokenizer

from outpace.errors import InvalidParameterError, ModelFormatError, UnsupportedModelError
from outpace.text import bpe
from outpace.text.bpe import BYTE_CHARACTERS
from outpace.text.gguf_tokenizer import GGUFCodec
from outpace.text.special_tokens import SpecialTokens
from outpace.text.tokenizer import Tokenizer

CONTROL, USER, UNUSED, NORMAL, UNKNOWN = 3, 4, 5, 1, 2


def with_tokens(*extra: tuple[str, int], **fields: object) -> Tokenizer:
    letters = [chr(c) for c in range(33, 127)] + ["Ġ"]
    tokens = [*letters, *(text for text, _ in extra)]
    types = [NORMAL] * len(letters) + [kind for _, kind in extra]
    return tokenizer(source(tokens, types, **fields))


def test_a_digest_tells_vocabularies_of_one_size_apart() -> None:
    first = with_tokens(("ab", NORMAL), ("cd", NORMAL))
    assert first.digest() == with_tokens(("ab", NORMAL), ("cd", NORMAL)).digest()
    others = [with_tokens(("cd", NORMAL), ("ab", NORMAL)), with_tokens(("abc", NORMAL), ("d~", NORMAL))]
    assert len({tok.digest() for tok in [first, *others]}) == 3
    assert len(first.digest()) == 32


# --- special tokens -----------------------------------------------------------------------------


def test_control_tokens_are_parsed_only_on_request_and_user_tokens_always() -> None:
    tok = with_tokens(("<ctl>", CONTROL), ("<usr>", USER), ("<unk>", UNKNOWN))
    ids = {text: tok.token_id(text) for text in ("<ctl>", "<usr>", "<unk>")}
    parsed = tok.encode("a<ctl><usr><unk>", parse_special=True)
    assert parsed == [tok.token_id("a"), *ids.values()]
    plain = tok.encode("a<ctl><usr><unk>")
    assert ids["<usr>"] in plain
    assert not {ids["<ctl>"], ids["<unk>"]} & set(plain)
    assert tok.decode(plain) == "a<ctl><usr><unk>"
    assert tok.special_ids == {ids["<ctl>"], ids["<unk>"]}
    assert tok.decode(parsed) == "a<usr>"
    assert tok.decode(parsed, skip_special=False) == "a<ctl><usr><unk>"


def test_the_longest_special_token_wins_even_where_a_shorter_one_starts_earlier() -> None:
    import numpy as np

    special = SpecialTokens(["ab", "bcd", "x"], np.array([USER, USER, NORMAL], np.int32))
    assert special.split("abcdab", parse_special=False) == ["a", 1, 0]


@given(
    st.lists(st.text("ab<>", min_size=1, max_size=4), unique=True, min_size=1, max_size=6),
    st.text("ab<>", max_size=30),
)
def test_splitting_loses_nothing(specials: list[str], text: str) -> None:
    import numpy as np

    finder = SpecialTokens(specials, np.full(len(specials), USER, np.int32))
    pieces = finder.split(text, parse_special=False)
    assert "".join(specials[p] if isinstance(p, int) else p for p in pieces) == text
    assert all(p != "" for p in pieces)
    assert not any(s in p for p in pieces if isinstance(p, str) for s in specials)


def test_ends_come_from_keys_and_from_well_known_texts() -> None:
    tok = with_tokens(
        ("<|im_end|>", CONTROL), ("<|eot_id|>", NORMAL), ("<mine>", CONTROL), ("<other>", CONTROL), eos_id=97
    )
    assert tok.token_text(97) == "<mine>"
    assert tok.eos_ids == {95, 96, 97}
    assert tok.special_ids == {95, 96, 97, 98}  # <|eot_id|> is a control token whatever the file says


@pytest.mark.parametrize(("kind", "ends"), [(CONTROL, True), (NORMAL, False)])
def test_html_is_no_end(kind: int, ends: bool) -> None:
    tok = with_tokens(("</s>", kind))
    assert (tok.token_id("</s>") in tok.eos_ids) is ends
    assert tok.decode([95]) == ("" if ends else "</s>")


def test_a_named_end_is_an_end_whatever_its_type() -> None:
    assert with_tokens(("</s>", NORMAL), eos_id=95).eos_ids == {95}


def test_the_harmony_end_of_a_message_is_no_end() -> None:
    tok = with_tokens(
        ("<|end|>", CONTROL), ("<|return|>", CONTROL), ("<|call|>", CONTROL), ("<|channel|>", CONTROL)
    )
    assert tok.eos_ids == {96, 97}
    assert tok.decode([95, 98]) == "<|end|><|channel|>"


def test_bos_and_eos_are_added_as_the_file_says() -> None:
    assert with_tokens(("<b>", CONTROL), bos_id=95).encode("a") == [64]
    assert with_tokens(("<b>", CONTROL), bos_id=95, add_bos=True).encode("a") == [95, 64]
    assert with_tokens(("<b>", CONTROL), bos_id=95, add_bos=True).encode("a", add_special=False) == [64]
    assert with_tokens(("<b>", CONTROL), bos_id=95, pre="llama-bpe").encode("a") == [95, 64]
    assert with_tokens(("<b>", CONTROL), bos_id=95, pre="llama-bpe", add_bos=False).encode("a") == [64]
    assert with_tokens(("<e>", CONTROL), eos_id=95, add_eos=True).encode("a") == [64, 95]


# --- SentencePiece ------------------------------------------------------------------------------


def test_scored_puts_a_space_first_and_takes_it_away() -> None:
    tok = small_scored()
    ids = tok.encode("hello world")
    assert [tok.token_text(i) for i in ids] == ["<s>", "▁hello", "▁world"]
    assert tok.decode(ids) == "hello world"
    without = small_scored(add_space_prefix=False)
    assert [without.token_text(i) for i in without.encode("hello")] == ["<s>", "h", "e", "ll", "o"]
    assert without.decode(without.encode(" hello")) == " hello"


def test_scored_spells_unknown_characters_in_bytes() -> None:
    tok = small_scored()
    assert [tok.token_text(i) for i in tok.encode("é中", add_special=False)] == [
        "▁",
        "é",
        "<0xE4>",
        "<0xB8>",
        "<0xAD>",
    ]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_scored_round_trip(text: str) -> None:
    tok = small_scored()
    marked = text.replace("▁", " ")  # the mark and a space are one and the same to such a vocabulary
    assert tok.decode(tok.encode(text, add_special=False)) == marked


# --- round trips and bytes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def missing_bytes(smollm: Tokenizer) -> set[int]:
    return {byte for byte, character in BYTE_CHARACTERS.items() if smollm.token_id(character) is None}


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60), parse=st.booleans())
def test_round_trip(smollm: Tokenizer, missing_bytes: set[int], text: str, parse: bool) -> None:
    # This vocabulary lacks the tokens of some bytes; like llama.cpp, the model's own tokenizer drops them.
    assume(not missing_bytes & set(text.encode()))
    ids = smollm.encode(text, parse_special=parse)
    assert smollm.decode(ids, skip_special=False) == text
    assert b"".join(smollm.token_bytes(i, skip_special=False) for i in ids) == text.encode()


def test_normalization_forms_stay_apart(smollm: Tokenizer) -> None:
    assert smollm.encode("\u00e9") != smollm.encode("e\u0301")
    assert smollm.decode(smollm.encode("e\u0301")) == "e\u0301"


def test_ids_past_the_tokenizers_own_have_no_text() -> None:
    codec = GGUFCodec(source(["a", "b"]), PATH)
    tok = Tokenizer(codec, vocab_size=8)
    assert tok.vocab_size == 8
    assert tok.token_bytes(7) == b""
    assert tok.decode([0, 7, 1]) == "ab"
    assert tok.token_text(7) == ""
    for token_id in (8, -1):
        with pytest.raises(InvalidParameterError, match=r"out of range; the vocabulary has 8"):
            tok.token_bytes(token_id)


def test_unused_tokens_have_no_text() -> None:
    assert with_tokens(("[PAD1]", UNUSED)).token_bytes(95) == b""


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff ok"])
def test_lone_surrogates_are_refused(smollm: Tokenizer, text: str) -> None:
    with pytest.raises(InvalidParameterError, match="lone surrogate") as caught:
        smollm.encode(text)
    assert caught.value.parameter == "prompt"


def test_unknown_pre_tokenizer_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="'klingon'"):
        tokenizer(source(["a"], pre="klingon"))


def test_unknown_algorithm_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="'t5'"):
        tokenizer(source(["a"], model="t5"))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"merges": None}, "merges"),
        ({"merges": ["a x"]}, "merges"),
        ({"merges": ["a b"]}, "merges"),
        ({"merges": ["ab"]}, "merges"),
        ({"merges": [""]}, "merges"),
        ({"merges": [" "]}, "merges"),
        ({"model": "llama"}, "scores"),
        ({"add_bos": True}, "add_bos_token"),
        ({"add_eos": True}, "add_eos_token"),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_damaged_vocabularies(fields: dict[str, object], field: str, *, lazy: bool) -> None:
    with pytest.raises(ModelFormatError) as caught:
        tokenizer(source(["a", "b"], **fields), lazy=lazy)
    assert field in caught.value.field
    assert caught.value.path == str(PATH)


def test_a_token_twice_is_refused() -> None:
    with pytest.raises(ModelFormatError, match="same text"):
        tokenizer(source(["a", "b", "a"]))


@pytest.mark.parametrize(
    ("tokens", "score", "problem"),
    [(["a" * 2000, "b"], -1.0, "2000 characters"), (["a", "b"], math.nan, "not a number")],
)
def test_hostile_scores(tokens: list[str], score: float, problem: str) -> None:
    with pytest.raises(ModelFormatError, match=problem):
        tokenizer(scored_source(tokens, [score, 0.0], [1, 1]))


def test_a_merge_listed_twice_counts_where_it_comes_first() -> None:
    tokens = ["a", "b", "c", "ab", "bc"]
    tok = tokenizer(source(tokens, merges=["a b", "b c", "a b"]))
    assert [tok.token_text(i) for i in tok.encode("abc")] == ["ab", "c"]


def test_empty_tokens_are_kept_in_their_place() -> None:
    tok = tokenizer(source(["a", "", "b"]))
    assert tok.encode("ab") == [0, 2]


def test_no_chat_template_says_so() -> None:
    tok = Tokenizer(GGUFCodec(source(["a"]), PATH), name="base-model")
    assert tok.chat_template is None
    with pytest.raises(UnsupportedModelError, match=r"base-model has no chat template.*complete plain text"):
        tok.render_chat([{"role": "user", "content": "hi"}])


def test_chat_of_a_real_model(smollm: Tokenizer) -> None:
    text = smollm.render_chat([{"role": "user", "content": "hi"}])
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    ids = smollm.encode(text, add_special=False, parse_special=True)
    assert ids[0] == smollm.token_id("<|im_start|>")
    assert smollm.decode(ids, skip_special=False) == text


# --- speed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("parse", [False, True])
def test_a_long_text_becomes_the_ids_of_a_short_one(
    smollm: Tokenizer, parse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long way of the library, which lets other threads run, against the short one."""
    characters = "".join(map(chr, [*range(32, 0x2000), *range(0x4E00, 0x5200), *range(0x1F300, 0x1F600)]))
    text = Path(__file__).read_text() + "<|im_end|> don't  stop\n\n\n" + characters
    assert len(text) > bpe.SHORT_TEXT
    long = smollm.encode(text, parse_special=parse)
    monkeypatch.setattr(bpe, "SHORT_TEXT", len(text))
    assert smollm.encode(text, parse_special=parse) == long
    assert smollm.decode(long, skip_special=False) == text


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        " " * 1_000_000,
        "\n" * 1_000_000,
        "aB" * 500_000,
        "<|im_start|>" * 80_000,
        "!" * 1_000_000,
    ],
)
def test_a_megabyte_takes_seconds_at_most(smollm: Tokenizer, text: str) -> None:
    """Anything quadratic would take hours."""
    start = time.process_time()
    ids = smollm.encode(text, parse_special=True)
    assert time.process_time() - start < 15
    assert smollm.decode(ids, skip_special=False) == text


def test_a_megabyte_of_one_word_scored() -> None:
    tok = small_scored()
    start = time.process_time()
    ids = tok.encode("ll" * 500_000, add_special=False)
    assert time.process_time() - start < 15
    assert len(ids) == 500_001


def test_from_checkpoint_takes_the_models_rows(smollm: Tokenizer, model_135m: Path) -> None:
    from outpace.models.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model_135m)
    assert smollm.vocab_size == checkpoint.spec.vocab_size == 49152
    assert smollm.bos_id == 1
    wider: Any = SimpleNamespace(
        tokenizer=checkpoint.tokenizer,
        path=checkpoint.path,
        name="x",
        spec=SimpleNamespace(vocab_size=50_000),
    )
    assert Tokenizer.from_checkpoint(wider).vocab_size == 50_000
