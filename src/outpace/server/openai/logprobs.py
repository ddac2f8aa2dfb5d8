"""Log probabilities in the two forms that the API knows."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Any

from outpace.text.tokenizer import Tokenizer
from outpace.types import TokenLogprob

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """A chat choice's `logprobs`. Where a token is part of a character, `bytes` has the truth."""

    def describe(token_id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id)
        return {"token": raw.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(raw)}

    content = [
        {
            **describe(entry.token_id, entry.logprob),
            "top_logprobs": [describe(token_id, logprob) for token_id, logprob in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """A text completion choice's `logprobs`, piece by piece; it counts the text offsets."""

    def __init__(self, tokenizer: Tokenizer, offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._offset = offset  # characters before the next token
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The `logprobs` object of the next tokens."""
        tokens: list[str] = []
        offsets: list[int] = []
        for entry in entries:
            tokens.append(self._name(entry.token_id))
            offsets.append(self._advance(self._tokenizer.token_bytes(entry.token_id)))
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": [
                {self._name(token_id): _finite(logprob) for token_id, logprob in entry.top}
                for entry in entries
            ],
            "text_offset": offsets,
        }

    def _advance(self, raw: bytes) -> int:
        """Where in the text a token's bytes start; counts the characters that they complete."""
        start = self._offset
        pending = self._decoder.getstate()[0]
        if pending and raw and raw[0] & 0xC0 != 0x80:
            start += 1  # the unfinished character before them stays one: U+FFFD
        self._offset += len(self._decoder.decode(raw))
        return start

    def _name(self, token_id: int) -> str:
        """The token's text; `bytes:\\x..` where it is no whole character, as the API writes it."""
        raw = self._tokenizer.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
