"""An encoder of what can occur in one prompt gives the ids of the whole vocabulary's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import golden, source, tokenizer

from outpace import _native
from outpace.errors import ModelFormatError
from outpace.models.checkpoint import open_checkpoint
from outpace.models.tokenizer_source import GGUFTokenizer
from outpace.text import bpe
from outpace.text.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from outpace.text.tokenizer import Tokenizer

WORDS = PreTokenizer((r"\s+",))


class Built:
    """The sizes of the vocabularies that the library was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        build = bpe.models.BPE

        def counted(**arguments: Any) -> object:
            self.sizes.append(len(arguments["vocab"]))
            return build(**arguments)

        monkeypatch.setattr(bpe.models, "BPE", counted)


def letters(
    merges: Sequence[str], others: Sequence[str] = tuple(bpe.BYTE_CHARACTERS.values())
) -> dict[str, int]:
    tokens = [*"abcd", *others, *(merge.replace(" ", "") for merge in merges)]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


# --- equal ids -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixture", "name"), [("model_135m", "smollm2-135m"), ("model_05b", "qwen2.5-coder")]
)
def test_real_vocabularies(fixture: str, name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    checkpoint, expected = open_checkpoint(path), golden(name)
    prompts = zip(expected["texts"], expected["plain"], expected["special"], strict=True)
    for number, (text, plain, special) in enumerate(prompts):
        tok = Tokenizer.from_checkpoint(checkpoint, lazy=True)
        if number % 2:
            assert tok.encode(text, add_special=False) == plain, text
        else:
            assert tok.encode(text, parse_special=True) == special, text


@pytest.mark.parametrize("pre", {spec: name for name, spec in PRE_TOKENIZERS.items()}.values())
def test_every_pre_tokenizer(pre: str) -> None:
    expected = golden("splitters")
    made = source(
        expected["tokens"], expected["types"], pre=pre, merges=expected["merges"], bos_id=0, eos_id=0
    )
    for text, groups in zip(expected["texts"], expected["groups"], strict=True):
        named = [ids for names, ids in groups if pre in names]
        ids = named[0] if named else groups[0][1]
        assert tokenizer(made, lazy=True).encode(text, add_special=False) == ids, text


@st.composite
def merge_lists(draw: st.DrawFn) -> list[str]:
    """Merges of letters and of what earlier merges made, some of them twice, in any order."""
    made, merges = list("abcd"), list[str]()
    for _ in range(draw(st.integers(0, 25))):
        left, right = draw(st.sampled_from(made)), draw(st.sampled_from(made))
        merges.append(f"{left} {right}")
        made.append(left + right)
    return draw(st.permutations(merges))


@given(
    merge_lists(),
    st.lists(st.text("abcd e", max_size=40), max_size=4),
    st.booleans(),
    st.sampled_from([tuple(bpe.BYTE_CHARACTERS.values()), ("dcba", "abcde"), ()]),
)
@settings(max_examples=150, deadline=None)
def test_any_merges_and_texts(
    merges: list[str], texts: list[str], whole_pieces: bool, others: tuple[str, ...]
) -> None:
    """Also where bytes have no token, and where a token is no merge's."""
    splitter, vocab = PreTokenizer(WORDS.patterns, ignore_merges=whole_pieces), letters(merges, others)
    whole = bpe.ByteLevelBPE(dict(vocab), merges, splitter)
    assert bpe.ByteLevelBPE(vocab, merges, splitter, lazy=True).encode(texts) == whole.encode(texts)


# --- when it serves ------------------------------------------------------------------------------


def test_only_the_first_prompt_is_served_by_an_excerpt(monkeypatch: pytest.MonkeyPatch) -> None:
    built = Built(monkeypatch)
    encoder = bpe.ByteLevelBPE(letters(["a b"]), ["a b"], WORDS, lazy=True)
    assert built.sizes == []
    first = encoder.encode(["ab ba"])
    assert built.sizes == [4]  # a, b, ab and the space
    assert encoder.encode(["ab ba"]) == first
    assert encoder.encode(["c", "d"]) == [[2], [3]]
    assert built.sizes == [4, len(letters(["a b"]))]


@pytest.mark.parametrize(
    "texts",
    [["a" * 500], ["ab "] * (bpe.MAX_EXCERPT_CHARACTERS // 3 + 1)],
    ids=["a long piece", "a long prompt"],
)
def test_a_large_excerpt_is_not_made(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    built = Built(monkeypatch)
    encoder = bpe.ByteLevelBPE(letters(["a b"]), ["a b"], WORDS, lazy=True)
    ids = encoder.encode(texts)
    assert built.sizes == [len(letters(["a b"]))]
    assert ids == bpe.ByteLevelBPE(letters(["a b"]), ["a b"], WORDS).encode(texts)


def test_a_byte_without_a_token_does_not_part_its_neighbours() -> None:
    for lazy in (False, True):
        encoder = bpe.ByteLevelBPE({"a": 0, "aa": 1}, ["a a"], WORDS, lazy=lazy)
        assert encoder.encode(["aea"]) == [[1]]


def test_no_text_at_all() -> None:
    encoder = bpe.ByteLevelBPE(letters([]), [], WORDS, lazy=True)
    assert encoder.encode([]) == []
    assert encoder.encode([""]) == [[]]


# --- merges that make no token -------------------------------------------------------------------


def reference(tokens: Sequence[str], merges: Sequence[str]) -> int:
    for index, merge in enumerate(merges):
        left, _, right = merge[1:].partition(" ")
        left = merge[:1] + left
        if not {left, right, left + right} <= set(tokens) or " " not in merge[1:]:
            return index
    return -1


PIECES = st.text("ab \u0120\u4e00\U0001f986\ud800", max_size=3)


@given(st.lists(PIECES, max_size=30), st.lists(st.tuples(PIECES, PIECES).map(" ".join), max_size=6))
@settings(max_examples=500, deadline=None)
def test_the_first_bad_merge(tokens: list[str], merges: list[str]) -> None:
    found = _native.first_bad_merge(tuple(tokens), tuple(merges))
    assert found == reference(tokens, merges)


def test_a_bad_merge_among_good_ones() -> None:
    tokens = tuple(letters(["a b", "ab c", "\u0120 a"]))
    good = ("a b", "ab c", "\u0120 a")
    assert _native.first_bad_merge(tokens, good) == -1
    for bad in ("a", "", " ", "a  b", "x a", "a x", "b a", "ab c ", " ab c"):
        assert _native.first_bad_merge(tokens, (*good, bad)) == 3, bad
    assert _native.first_bad_merge((), ()) == -1
    with pytest.raises(TypeError):
        _native.first_bad_merge((1,), ())  # type: ignore[arg-type]


def test_a_bad_merge_is_refused_though_no_text_needs_it() -> None:
    made: GGUFTokenizer = source(["a", "b", "c", "ab"], merges=["a b", "b c"])
    with pytest.raises(ModelFormatError, match="merges"):
        tokenizer(made, lazy=True)
