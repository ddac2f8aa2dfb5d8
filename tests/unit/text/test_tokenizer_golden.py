"""Identical to llama.cpp's tokenizer: stored results, and live ones where llama-cpp-python is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import golden, scored_source, source, tokenizer

from outpace.text.pretokenizers import PRE_TOKENIZERS
from outpace.text.tokenizer import Tokenizer

CORPUS_SIZE = 60


def check(tok: Tokenizer, expected: dict[str, Any]) -> None:
    texts, plain, special = expected["texts"], expected["plain"], expected["special"]
    assert len(texts) >= CORPUS_SIZE
    for text, plain_ids, special_ids in zip(texts, plain, special, strict=True):
        assert tok.encode(text, add_special=False) == plain_ids, text
        assert tok.encode(text, parse_special=True) == special_ids, text


def test_smollm2_is_llama_cpps(smollm: Tokenizer) -> None:
    expected = golden("smollm2-135m")
    check(smollm, expected)
    assert smollm.eos_ids == set(expected["ends"])


@pytest.mark.model05b
def test_qwen_is_llama_cpps(qwen: Tokenizer) -> None:
    expected = golden("qwen2.5-coder")
    check(qwen, expected)
    # llama.cpp ends a generation at "</s>" although the file calls it plain text; in HTML it is meant.
    html = qwen.token_id("</s>")
    assert qwen.eos_ids == set(expected["ends"]) - {html}
    assert html not in qwen.special_ids
    assert qwen.decode([html]) == "</s>"


@pytest.mark.model15b
def test_both_qwen_files_agree(qwen: Tokenizer, model_15b: Path) -> None:
    from outpace.models.checkpoint import open_checkpoint

    other = Tokenizer.from_checkpoint(open_checkpoint(model_15b))
    check(other, golden("qwen2.5-coder"))
    assert other.eos_ids == qwen.eos_ids


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_pre_tokenizer_is_llama_cpps(pre: str) -> None:
    expected = golden("splitters")
    tok = tokenizer(
        source(expected["tokens"], expected["types"], pre=pre, merges=expected["merges"], bos_id=0, eos_id=0)
    )
    for text, groups in zip(expected["texts"], expected["groups"], strict=True):
        named = [ids for names, ids in groups if pre in names]
        ids = named[0] if named else groups[0][1]
        assert tok.encode(text, add_special=False) == ids, text
    assert tok.encode("a") == expected["a_with_special"][pre]


def test_the_pre_tokenizers_differ_on_the_corpus() -> None:
    """Else the test above could not tell them apart."""
    groups = golden("splitters")["groups"]
    distinct = {spec.patterns: name for name, spec in PRE_TOKENIZERS.items()}
    signatures = {
        pre: tuple(next((i for i, (names, _) in enumerate(group) if pre in names), 0) for group in groups)
        for pre in distinct.values()
    }
    same = len(signatures) - len(set(signatures.values()))
    assert same <= 3, "grok-2's kin with the same expression in other words aside"


def test_scored_is_llama_cpps() -> None:
    expected = golden("scored")
    tok = tokenizer(
        scored_source(expected["tokens"], expected["scores"], expected["types"], bos_id=0, eos_id=0)
    )
    check(tok, expected)


# --- live ---------------------------------------------------------------------------------------

CHARACTERS = (
    "aAbZé\u0301ßÉ ٣½Ⅷ１09'’sStT.,!?-_/\\$+<=>^~|`#%&*@()[]{}\"\t\n\r\x0b\x00\x1c\x85\xa0\u2003\u3000\u200d"
    "中文あ한म\u0e49\u093f\u094dעب😀"
)
WORDS = (
    *(" ", "  ", "\n", "12", "'ll", "▁", "Ġ"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "</s>", "<s>", "<0x0A>"),
)
PIECES = st.sampled_from([*CHARACTERS, *WORDS])
TEXT = st.one_of(
    st.lists(PIECES, max_size=40).map("".join),
    st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60),
)
Agree = Callable[[Tokenizer, Path], None]


@pytest.fixture(scope="module")
def agree() -> Agree:
    pytest.importorskip("llama_cpp", reason="NOT TESTED against live llama.cpp: pip install 'outpace[peer]'")
    from tools.make_tokenizer_goldens import LlamaTokenizer

    def check_live(tok: Tokenizer, path: Path) -> None:
        llama = LlamaTokenizer(path)

        @settings(max_examples=800, deadline=None, derandomize=True)
        @given(TEXT, st.booleans(), st.booleans())
        def same(text: str, add_special: bool, parse_special: bool) -> None:
            ids = tok.encode(text, add_special=add_special, parse_special=parse_special)
            assert ids == llama.encode(text, add_special=add_special, parse_special=parse_special)

        same()
        for token_id in range(tok.vocab_size):
            assert tok.token_bytes(token_id, skip_special=False) == llama.piece(token_id), token_id

    return check_live


def test_smollm2_live(agree: Agree, smollm: Tokenizer, model_135m: Path) -> None:
    agree(smollm, model_135m)


@pytest.mark.model05b
def test_qwen_live(agree: Agree, qwen: Tokenizer, model_05b: Path) -> None:
    agree(qwen, model_05b)


def test_random_scored_vocabularies_live(agree: Agree) -> None:
    from tools.make_tokenizer_goldens import llama_for

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.data())
    def same(data: st.DataObject) -> None:
        alphabet = data.draw(st.sampled_from(["ab", "abc", "aé中", "ab▁"]))
        words = data.draw(st.sets(st.text(alphabet, min_size=1, max_size=5), min_size=2, max_size=30))
        tokens = ["<s>", *(f"<0x{i:02X}>" for i in range(256)), *sorted(words)]
        scores = [0.0] * 257 + [-float(i) for i in data.draw(st.permutations(range(1, len(words) + 1)))]
        types = [3] + [6] * 256 + [1] * len(words)
        fields = {"model": "llama", "pre": "default", "tokens": tokens, "scores": scores, "types": types}
        llama = llama_for(fields)
        tok = tokenizer(scored_source(tokens, scores, types, bos_id=0, eos_id=0))
        for text in data.draw(st.lists(st.text(alphabet + " ", max_size=30), min_size=20, max_size=20)):
            assert tok.encode(text) == llama.encode(text, add_special=True, parse_special=False)

    same()


def test_golden_vocabularies_are_whole() -> None:
    """The stored vocabularies are what they say: no token twice, a score for each."""
    expected = golden("scored")
    assert len(set(expected["tokens"])) == len(expected["tokens"]) == len(expected["scores"])
    assert np.unique(np.array(expected["scores"][257:], np.float32)).size == len(expected["scores"]) - 257
