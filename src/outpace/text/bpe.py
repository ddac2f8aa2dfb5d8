"""Byte-pair encoding by the `tokenizers` library, set up from a GGUF vocabulary.

Two kinds: byte-level (GPT-2 and all that followed), whose merges are listed in the file, and scored
(SentencePiece), where two neighbours merge if their joint text is a token, the best score first.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, repeat
from typing import TypeVar

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from outpace import _native
from outpace.text.pretokenizers import PreTokenizer

T = TypeVar("T")

SPACE_MARK = "▁"
"""U+2581, which stands for a space in SentencePiece vocabularies."""

SHORT_TEXT = 8192
"""Characters that are encoded in a few milliseconds."""

MAX_TOKEN_CHARACTERS = 1024
"""Of a scored token; it may be made in as many ways as it has characters."""


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTE_CHARACTERS = _byte_characters()
"""By byte, the character that stands for it in byte-level vocabularies."""
_BYTE_OF = {character: byte for byte, character in BYTE_CHARACTERS.items()}


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a byte-level token's text stands for; a text that is not byte-level is itself."""
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode("utf-8", "replace")


def marked_bytes(token: str) -> bytes:
    """The bytes that a SentencePiece token's text stands for."""
    return token.replace(SPACE_MARK, " ").encode("utf-8", "replace")


def byte_token_value(token: str) -> bytes | None:
    """The one byte that "<0xE2>" stands for; None for any other text."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            return None
    return None


def guarded(build: Callable[[], T]) -> T:
    """What `build` makes with the `tokenizers` library, whose refusals and panics become `ValueError`."""
    try:
        return build()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library's Rust code is no Exception
        raise ValueError(str(error)) from None


def encode_with(tokenizer: Tokenizer, text: str, *, add_special: bool = False) -> list[int]:
    """Token ids of `text`, the same whatever its length decides here.

    `encode` keeps the interpreter's lock: for a megabyte, half a second in which every stream stands still.
    A batch gives it up, but takes the library's own threads, so a short text goes without.
    """
    if len(text) <= SHORT_TEXT:
        return tokenizer.encode(text, add_special_tokens=add_special).ids
    [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=add_special)
    return encoding.ids


def _split_merge(merge: str) -> tuple[str, str]:
    left, _, right = merge[1:].partition(" ")
    return merge[:1] + left, right


MAX_EXCERPT_CHARACTERS = 1 << 16
MAX_EXCERPT_PARTS = 100_000
"""Of a prompt for which an excerpt is less work than the whole vocabulary."""


class ByteLevelBPE:
    """Encodes plain text with listed merges over bytes.

    The library takes 0.2 s to build the encoder of a vocabulary of 150,000, but merging makes nothing of a
    text except parts of its pieces, so an encoder of the few tokens that are such parts gives the same ids.
    Where it is `lazy`, that serves the first texts if they are short, and the whole vocabulary all others.
    """

    def __init__(
        self, vocab: dict[str, int], merges: list[str], splitter: PreTokenizer, *, lazy: bool = False
    ) -> None:
        """`merges` are "left right", best first. Raises `ValueError` where a merge makes no token."""
        self._vocab = vocab
        self._merges = merges
        self._ignore_merges = splitter.ignore_merges
        self._splitter = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splitter.patterns),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._whole: Tokenizer | None = None
        self._lock = threading.Lock()
        self._excerpt_allowed = lazy
        if not lazy or _native.first_bad_merge(tuple(vocab), tuple(merges)) >= 0:
            self._build_whole()  # says what is wrong with the merge

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; none holds special tokens."""
        tokenizer = self._encoder(texts)
        return [encode_with(tokenizer, text) for text in texts]

    def _encoder(self, texts: Sequence[str]) -> Tokenizer:
        if self._whole is not None:
            return self._whole
        with self._lock:
            if self._excerpt_allowed:
                self._excerpt_allowed = False
                excerpt = self._excerpt(texts)
                if excerpt is not None:
                    return excerpt
            return self._whole or self._build_whole()

    def _build_whole(self) -> Tokenizer:
        merges = self._merges
        unique = merges if len(set(merges)) == len(merges) else list(dict.fromkeys(merges))
        if "\n " in "\n" + "\n".join(unique):  # perhaps a token that starts with a space
            pairs = [_split_merge(merge) for merge in unique]
        else:
            pairs = [(left, right) for left, _, right in map(str.partition, unique, repeat(" "))]
        self._whole = self._tokenizer(self._vocab, pairs)
        self._vocab, self._merges = {}, []  # the library has its own
        return self._whole

    def _excerpt(self, texts: Sequence[str]) -> Tokenizer | None:
        """An encoder of the tokens and merges that can occur in `texts`; None where it might not be that.

        So for a long prompt, and for a byte without a token: it is left out, and its neighbours may merge.
        """
        if sum(map(len, texts)) > MAX_EXCERPT_CHARACTERS:
            return None
        pieces = {piece for text in texts for piece, _ in self._splitter.pre_tokenize_str(text)}
        if sum(len(piece) * (len(piece) + 1) // 2 for piece in pieces) > MAX_EXCERPT_PARTS:
            return None
        if not set[str]().union(*pieces) <= self._vocab.keys():
            return None
        parts = {piece[i:j] for piece in pieces for i, j in combinations(range(len(piece) + 1), 2)}
        vocab = {part: self._vocab[part] for part in parts if part in self._vocab}
        cuts = ((token[:cut], token[cut:]) for token in vocab for cut in range(1, len(token)))
        # No part has a space in it: the byte's stand-in is another character.
        joins = {f"{left} {right}" for left, right in cuts if left in vocab and right in vocab}
        merges = dict.fromkeys(filter(joins.__contains__, self._merges))  # still the best first
        return self._tokenizer(vocab, [_split_merge(merge) for merge in merges])

    def _tokenizer(self, vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
        tokenizer = Tokenizer(
            guarded(lambda: models.BPE(vocab=vocab, merges=merges, ignore_merges=self._ignore_merges))
        )
        tokenizer.pre_tokenizer = self._splitter
        return tokenizer


class ScoredBPE:
    """Encodes plain text by merging the pair of neighbours whose joint token scores best.

    Equal to SentencePiece and llama.cpp where scores differ, as training makes them. Among tokens of equal
    score the first of the vocabulary goes first, where those two take the leftmost in the text.
    """

    def __init__(self, vocab: Mapping[str, int], scores: Sequence[float]) -> None:
        """`scores` are by id. Tokens "<0x00>" to "<0xFF>" spell what has no token of its own.

        Raises `ValueError` for a token that no real vocabulary would hold or a score that is no number.
        """
        longest = max(map(len, vocab), default=0)
        if longest > MAX_TOKEN_CHARACTERS:
            raise ValueError(f"a token has {longest} characters; the limit is {MAX_TOKEN_CHARACTERS}")
        if any(math.isnan(score) for score in scores):
            raise ValueError("a score is not a number")
        self._size = len(vocab)
        full = dict(vocab)
        # A character without a token can still be half of one: it gets an id past the end, for a while.
        characters = dict.fromkeys(c for token in vocab for c in token if c not in vocab)
        full.update((character, self._size + i) for i, character in enumerate(characters))
        self._spellings = [
            [vocab[byte] for byte in _spelling(character) if byte in vocab] for character in characters
        ]
        merges = _scored_merges(vocab, full, scores)
        self._tokenizer = Tokenizer(models.BPE(vocab=full, merges=merges, byte_fallback=True))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; none holds special tokens, and spaces are marked or kept by the caller."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        ids = encode_with(self._tokenizer, text)
        size = self._size
        if not self._spellings or max(ids, default=0) < size:
            return ids
        spelled: list[int] = []
        for token_id in ids:
            spelled.extend([token_id] if token_id < size else self._spellings[token_id - size])
        return spelled


def _spelling(character: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in character.encode("utf-8", "surrogatepass")]


def _scored_merges(
    vocab: Mapping[str, int], known: Mapping[str, int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    ranked: list[tuple[float, int, bool, str, str]] = []
    for token, token_id in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in known and right in known:
                # Two ways to make one token can overlap (x, y, z with xy = yz): the left one goes first.
                leads = token.startswith(right)
                ranked.append((-scores[token_id], token_id, not leads, left, right))
    ranked.sort(key=lambda each: each[:3])
    return [(left, right) for *_, left, right in ranked]
