"""Text from token ids as they come, whole characters only."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Iterable

from outpace.errors import InvalidParameterError
from outpace.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns a growing list of token ids into a growing text; nothing is decoded twice.

    However the ids are split over calls, the pushes and the flush together are `Tokenizer.decode` of all
    of them. A character whose bytes are not all there yet waits; bytes that can no longer become one are
    U+FFFD at once. One per choice; not safe to share between threads.
    """

    __slots__ = ("_at_start", "_shown", "_skip_special", "_table", "_tail", "_tokenizer")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        continues: bool = False,
        skip_special: bool = True,
        shown: Iterable[int] = (),
    ) -> None:
        """`continues` says that the ids follow a text, whose last word a leading space must not join.

        Without it the space that a SentencePiece tokenizer puts before a text is taken away. `shown` are
        special tokens that are not skipped.
        """
        self._shown = {token_id: tokenizer.token_bytes(token_id, skip_special=False) for token_id in shown}
        self._tokenizer = tokenizer
        self._table = tokenizer.text_bytes if skip_special else [None] * tokenizer.vocab_size
        self._skip_special = skip_special
        self._tail = b""
        self._at_start = tokenizer.strips_leading_space and not continues

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these ids complete. Raises `InvalidParameterError` for an id out of range."""
        data = self._tail
        table = self._table
        for token_id in token_ids:
            try:
                piece = table[token_id]
            except IndexError:
                raise InvalidParameterError(
                    f"token id {token_id} is out of range; the vocabulary has {len(table)} tokens"
                ) from None
            if token_id in self._shown:
                piece = self._shown[token_id]
            elif piece is None or token_id < 0:
                piece = self._tokenizer.token_bytes(int(token_id), skip_special=self._skip_special)
            data += piece
        text, used = utf_8_decode(data, "replace", False)
        self._tail = data[used:]
        return self._without_first_space(text) if self._at_start else text

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, else nothing."""
        text = self._tail.decode("utf-8", "replace")
        self._tail = b""
        return self._without_first_space(text) if self._at_start else text

    def _without_first_space(self, text: str) -> str:
        if text:
            self._at_start = False
        return text.removeprefix(" ")
