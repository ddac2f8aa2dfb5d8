"""Fill in the middle: a text with a gap as the prompt that a code model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outpace.errors import UnsupportedModelError
from outpace.text.tokenizer import Tokenizer

__all__ = ["SourceFile", "fill_in_middle"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Another file of the project, for the model to know."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class _Marks:
    """A family's control tokens; `suffix_first`: the text after the gap goes before the text before it."""

    prefix: str
    suffix: str
    middle: str  # "": the answer follows the prefix
    suffix_first: bool = False


_FAMILIES = (
    _Marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen
    _Marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    _Marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    _Marks(
        "<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"
    ),  # DeepSeek
    _Marks("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # Code Llama
    _Marks("[PREFIX]", "[SUFFIX]", "", suffix_first=True),  # Codestral
)
_FILE = "<|file_sep|>"
_REPOSITORY = "<|repo_name|>"


def fill_in_middle(
    tokenizer: Tokenizer, prefix: str, suffix: str, *, files: Sequence[SourceFile] = (), begun: str = ""
) -> list[int]:
    """The token ids of a prompt whose answer belongs between `prefix` and `suffix`.

    `files` come before it, by the model's own marks where it has them (Qwen's form). `begun` is how the
    answer begins already. Raises `UnsupportedModelError` for a model without the tokens for it.
    """
    family = _family(tokenizer)
    if family is None:
        raise UnsupportedModelError(
            "this model cannot fill in the middle: its vocabulary has no tokens for it; "
            "use a code model that has them (Qwen2.5-Coder, StarCoder2, Codestral), or leave the suffix out"
        )

    def mark(text: str) -> list[int]:
        token_id = tokenizer.token_id(text)
        return [] if token_id is None else [token_id]

    def plain(text: str) -> list[int]:
        return tokenizer.encode(text, add_special=False) if text else []

    ids = [tokenizer.bos_id] if tokenizer.bos_id is not None and _adds_bos(tokenizer) else []
    marked = bool(mark(_FILE))
    if files and marked:
        ids += mark(_REPOSITORY) + plain("project\n")
    for file in files:
        ids += mark(_FILE) + plain(f"{file.name}\n{file.text}\n")
    if files and marked:
        ids += mark(_FILE) + plain("filename\n")
    before = mark(family.prefix) + plain(prefix)
    after = mark(family.suffix) + plain(suffix)
    ids += after + before if family.suffix_first else before + after
    return ids + mark(family.middle) + plain(begun)


def can_fill_in_middle(tokenizer: Tokenizer) -> bool:
    """Whether the model's vocabulary has tokens for it."""
    return _family(tokenizer) is not None


def _family(tokenizer: Tokenizer) -> _Marks | None:
    return next((each for each in _FAMILIES if _known(tokenizer, each)), None)


def _known(tokenizer: Tokenizer, family: _Marks) -> bool:
    marks = filter(None, (family.prefix, family.suffix, family.middle))
    return all(tokenizer.token_id(text) is not None for text in marks)


def _adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the model's texts begin with the token for that."""
    return tokenizer.encode("", add_special=True)[:1] == [tokenizer.bos_id]
