"""Prompts with a gap, in the forms of the models that were trained on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_harness import ByteCodec, byte_tokenizer
from outpace.errors import UnsupportedModelError
from outpace.llm import LLM
from outpace.text.fill_in_middle import SourceFile, fill_in_middle
from outpace.text.tokenizer import Tokenizer
from outpace.types import SamplingParams


class MarkedCodec(ByteCodec):
    """Bytes, and after them the given control tokens."""

    def __init__(self, *marks: str) -> None:
        super().__init__(256 + len(marks))
        self.marks = marks

    def token_id(self, text: str) -> int | None:
        return 256 + self.marks.index(text) if text in self.marks else super().token_id(text)


def filled(*marks: str, **more: object) -> str:
    """The prompt, its control tokens in their own spelling."""
    ids = fill_in_middle(Tokenizer(MarkedCodec(*marks)), "before", "after", **more)
    return "".join(marks[token - 256] if token >= 256 else chr(token) for token in ids)


def test_the_gap_is_the_end_of_the_prompt() -> None:
    marks = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    assert filled(*marks) == "<|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>"
    assert filled(*marks, begun="x = ") == "<|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>x = "


def test_codestral_reads_the_end_first() -> None:
    assert filled("[PREFIX]", "[SUFFIX]") == "[SUFFIX]after[PREFIX]before"


def test_other_files_come_first() -> None:
    marks = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>", "<|repo_name|>")
    assert filled(*marks, files=[SourceFile("a.py", "x = 1")]) == (
        "<|repo_name|>project\n<|file_sep|>a.py\nx = 1\n<|file_sep|>filename\n"
        "<|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>"
    )
    assert filled(*marks[:3], files=[SourceFile("a.py", "x = 1")]).startswith("a.py\nx = 1\n<|fim_prefix|>")


def test_a_model_without_the_tokens_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="cannot fill in the middle"):
        fill_in_middle(byte_tokenizer(), "a", "b")


def test_a_code_model_fills_the_gap(model_05b: Path) -> None:
    with LLM(model_05b, kv_cache_bytes=1 << 26, max_context=1024) as llm:
        prompt = fill_in_middle(
            llm.tokenizer, "def add(first, second):\n    return ", "\n\nassert add(1, 2) == 3\n"
        )
        [output] = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=16))
        assert output.outputs[0].text.startswith("first + second")
