"""Which tokens of a GGUF vocabulary are special, which of them end a generation, and finding them in text.

The rules are llama.cpp's, by token type and, because files often lack the keys, by well-known texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum

import numpy as np

from outpace.types import Int32Array

_END_OF_GENERATION = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)
# Fill-in-the-middle markers, by role; the first that the vocabulary has is the marker.
_FIM_ENDS = (
    ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    ("<|file_sep|>",),
)
_FIM_OTHERS = (
    (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
)
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # gpt-oss
# "<|end|>" ends a message, not the generation, in vocabularies that have one of these pairs.
_HARMONY_SIGNS = (
    ("<|return|>", "<|call|>"),
    ("<|return|>", "<|calls|>"),
    ("<|call|>", "<|flush|>"),
    ("<|calls|>", "<|flush|>"),
)
_NORMAL_S_SIGNS = ("<|tool_response>", "<|plamo:eos|>")  # "</s>" is plain text beside these


class TokenType(IntEnum):
    """A token's type, as `tokenizer.ggml.token_type` numbers it."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


HIDDEN_TYPES = (TokenType.CONTROL, TokenType.UNKNOWN)
"""Parsed from text only on request, and left out of decoded text."""


def classify(
    vocab: Mapping[str, int], types: Int32Array, end_ids: Iterable[int | None]
) -> tuple[frozenset[int], frozenset[int]]:
    """Correct `types` in place by well-known texts; return the ids that end a generation, and the hidden ids.

    `vocab` maps a token's text to its id, `types` [vocab_size] holds each id's `TokenType`, and `end_ids`
    are the eos, eot and eom ids that the file names. Where "</s>" is plain text to the file it is parsed as
    llama.cpp parses it, but neither ends a generation nor is hidden: a model that writes HTML means it.
    """
    named_ends = {token_id for token_id in end_ids if token_id is not None}
    s = vocab.get("</s>")
    html = {s} - named_ends if s is not None and types[s] == TokenType.NORMAL else set[int]()
    ends = {vocab[text] for text in _END_OF_GENERATION if text in vocab}
    for token_id in ends:
        types[token_id] = TokenType.CONTROL
    for texts in (*_FIM_ENDS, *_FIM_OTHERS):
        marker = next((vocab[text] for text in texts if text in vocab), None)
        if marker is not None:
            types[marker] = TokenType.CONTROL
            if texts in _FIM_ENDS:
                ends.add(marker)
    for text in _ALWAYS_SHOWN:
        if text in vocab:
            types[vocab[text]] = TokenType.USER_DEFINED
    ends |= named_ends
    _drop_false_ends(vocab, types, ends)
    hidden = np.flatnonzero(np.isin(types, HIDDEN_TYPES)).tolist()
    return frozenset(ends - html), frozenset(hidden) - html


def _drop_false_ends(vocab: Mapping[str, int], types: Int32Array, ends: set[int]) -> None:
    end = vocab.get("<|end|>")
    if end in ends and any(all(vocab.get(sign) in ends for sign in pair) for pair in _HARMONY_SIGNS):
        ends.remove(end)
        types[end] = TokenType.USER_DEFINED
    s = vocab.get("</s>")
    if s in ends and any(vocab.get(sign) in ends for sign in _NORMAL_S_SIGNS):
        ends.remove(s)
        types[s] = TokenType.NORMAL


def known_ends(special: Mapping[str, int]) -> set[int]:
    """The ids, among these special tokens by text, whose text is known to end a generation."""
    return {special[text] for text in _END_OF_GENERATION if text in special}


class SpecialTokens:
    """Finds special tokens in text: the longest first, each from left to right, as llama.cpp does."""

    def __init__(self, tokens: Sequence[str], types: Int32Array) -> None:
        """`tokens` and `types` are by id; types CONTROL, UNKNOWN and USER_DEFINED are special."""
        kinds = (*HIDDEN_TYPES, TokenType.USER_DEFINED)
        special = [
            (tokens[token_id], token_id, types[token_id] in HIDDEN_TYPES)
            for token_id in np.flatnonzero(np.isin(types, kinds)).tolist()
        ]
        special.sort(key=lambda each: -len(each[0].encode("utf-8", "surrogatepass")))
        self._all = [(text, token_id, text[:2]) for text, token_id, _ in special]
        self._shown = [(text, token_id, text[:2]) for text, token_id, hidden in special if not hidden]
        self._all_heads = {text[:2] for text, _, _ in special}
        self._shown_heads = {head for _, _, head in self._shown}

    def split(self, text: str, *, parse_special: bool) -> list[str | int]:
        """Cut `text` into plain pieces (none is empty) and token ids.

        User-defined tokens are always found, control and unknown ones only with `parse_special`.
        """
        tokens, heads = (self._all, self._all_heads) if parse_special else (self._shown, self._shown_heads)
        heads = {head for head in heads if head in text}
        pieces: list[str | int] = [text] if text else []
        if not heads:
            return pieces
        for token, token_id, head in tokens:
            if head in heads and token in text:
                pieces = _cut(pieces, token, token_id)
        return pieces


def _cut(pieces: list[str | int], token: str, token_id: int) -> list[str | int]:
    result: list[str | int] = []
    for piece in pieces:
        if isinstance(piece, int):
            result.append(piece)
            continue
        first, *others = piece.split(token)
        if first:
            result.append(first)
        for other in others:
            result.append(token_id)
            if other:
                result.append(other)
    return result
