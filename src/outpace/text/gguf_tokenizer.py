"""A tokenizer from a GGUF file's metadata, equal to llama.cpp's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from outpace.errors import ModelFormatError, UnsupportedModelError
from outpace.models.tokenizer_source import GGUFTokenizer
from outpace.text.bpe import (
    SPACE_MARK,
    ByteLevelBPE,
    ScoredBPE,
    byte_level_bytes,
    byte_token_value,
    marked_bytes,
)
from outpace.text.pretokenizers import pre_tokenizer
from outpace.text.special_tokens import HIDDEN_TYPES, SpecialTokens, TokenType, classify


class _PlainEncoder(Protocol):
    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...


class GGUFCodec:
    """Encodes text and spells tokens as llama.cpp does for the same file. Implements `Codec`."""

    def __init__(self, source: GGUFTokenizer, path: Path, *, lazy: bool = False) -> None:
        """`lazy`: see `ByteLevelBPE`.

        Raises `UnsupportedModelError` for another algorithm, `ModelFormatError` for damaged data.
        """
        self._path = path
        self._scored = source.model == "llama"
        if not self._scored and source.model != "gpt2":
            raise UnsupportedModelError(
                f"{path}: tokenizer.ggml.model is {source.model!r}; Outpace reads 'gpt2' (byte-level BPE) "
                "and 'llama' (SentencePiece BPE)"
            )
        self.texts = source.tokens
        if "" in self.texts:
            self.texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(source.tokens)]
        self.size = len(self.texts)
        vocab = dict(zip(self.texts, range(self.size), strict=True))
        if len(vocab) != self.size:
            raise ModelFormatError(path, "tokenizer.ggml.tokens", "two tokens have the same text")
        types = np.full(self.size, TokenType.NORMAL, np.int32)
        if source.token_types is not None:
            types[:] = source.token_types
        self._plain, add_bos = self._encoder(source, vocab, lazy=lazy)
        self.bos_id = self._default(source.bos_id, 1)
        self.eos_id = self._default(source.eos_id, 2)
        ends = (self.eos_id, source.eot_id, source.eom_id)
        self.eos_ids, self.special_ids = classify(vocab, types, ends)
        self._special = SpecialTokens(self.texts, types)
        self._types: list[int] = types.tolist()
        self.strips_leading_space = self._scored and source.add_space_prefix is not False
        self._prefix = self._added(source.add_bos, add_bos, self.bos_id, "bos")
        self._suffix = self._added(source.add_eos, False, self.eos_id, "eos")

    def _encoder(
        self, source: GGUFTokenizer, vocab: dict[str, int], *, lazy: bool
    ) -> tuple[_PlainEncoder, bool]:
        """The encoder of plain text, and whether text starts with bos where the file does not say."""
        if self._scored:
            return self._scored_encoder(source, vocab), True
        if source.merges is None:
            raise ModelFormatError(self._path, "tokenizer.ggml.merges", "is missing")
        splitter = pre_tokenizer(source.pre)
        try:
            return ByteLevelBPE(vocab, source.merges, splitter, lazy=lazy), splitter.add_bos
        except ValueError as error:
            raise ModelFormatError(self._path, "tokenizer.ggml.merges", str(error)) from None

    def _scored_encoder(self, source: GGUFTokenizer, vocab: dict[str, int]) -> ScoredBPE:
        if source.scores is None:
            raise ModelFormatError(self._path, "tokenizer.ggml.scores", "is missing")
        try:
            return ScoredBPE(vocab, source.scores.tolist())
        except ValueError as error:
            raise ModelFormatError(self._path, "tokenizer.ggml.scores", str(error)) from None

    def _default(self, token_id: int | None, scored_default: int) -> int | None:
        """SentencePiece vocabularies have fixed ids where the file names none."""
        if token_id is None and self._scored and scored_default < self.size:
            return scored_default
        return token_id

    def _added(self, wanted: bool | None, default: bool, token_id: int | None, name: str) -> list[int]:
        """The ids that go at one end of a text with `add_special`."""
        if wanted and token_id is None:
            raise ModelFormatError(
                self._path, f"tokenizer.ggml.add_{name}_token", f"is true, but there is no {name}_token_id"
            )
        if not (default if wanted is None else wanted) or token_id is None:
            return []
        return [token_id]

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """See `outpace.text.tokenizer.Tokenizer.encode`."""
        pieces = self._special.split(text, parse_special=parse_special)
        plain = iter(self._plain.encode(self._plain_texts(pieces)))
        ids = list(self._prefix) if add_special else []
        for piece in pieces:
            ids += [piece] if isinstance(piece, int) else next(plain)
        if add_special:
            ids += self._suffix
        return ids

    def _plain_texts(self, pieces: Sequence[str | int]) -> list[str]:
        """The texts among `pieces`, as the plain encoder reads them."""
        if not self._scored:
            return [piece for piece in pieces if isinstance(piece, str)]
        texts: list[str] = []
        after_special = True
        for piece in pieces:
            if isinstance(piece, str):
                lead = " " if self.strips_leading_space and after_special else ""
                texts.append((lead + piece).replace(" ", SPACE_MARK))
            after_special = isinstance(piece, int)
        return texts

    def token_id(self, text: str) -> int | None:
        """The id of the token with exactly this text, or None."""
        try:
            return self.texts.index(text)
        except ValueError:
            return None

    def token_text(self, token_id: int) -> str:
        """The text of a token as the vocabulary writes it."""
        return self.texts[token_id]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; a special token stands for its own text."""
        token, kind = self.texts[token_id], self._types[token_id]
        if kind in (*HIDDEN_TYPES, TokenType.USER_DEFINED):
            return token.encode("utf-8", "replace")
        if kind == TokenType.BYTE:
            return byte_token_value(token) or b""
        if kind != TokenType.NORMAL:
            return b""
        return marked_bytes(token) if self._scored else byte_level_bytes(token)
