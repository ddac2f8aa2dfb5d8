"""What every kind of tokenizer gives: ids from text, and the bytes of each id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Codec(Protocol):
    """One vocabulary, from whatever file it came."""

    @property
    def size(self) -> int:
        """Ids run from 0 to size - 1."""
        ...

    @property
    def texts(self) -> Sequence[str]:
        """All tokens as the vocabulary writes them, [size]; empty for ids in a gap."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, where there is one."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a generation."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that steer the model and are no text: left out of decoded text."""
        ...

    @property
    def strips_leading_space(self) -> bool:
        """Whether encoding puts a space before the text, which decoding takes away."""
        ...

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """See `outpace.text.tokenizer.Tokenizer.encode`."""
        ...

    def token_id(self, text: str) -> int | None:
        """The id of the token with exactly this text, or None."""
        ...

    def token_text(self, token_id: int) -> str:
        """The text of a token as the vocabulary writes it."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; a special token stands for its own text."""
        ...
