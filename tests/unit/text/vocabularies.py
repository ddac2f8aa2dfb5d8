"""Small vocabularies for tests, built in memory as the GGUF reader would hand them over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from outpace.models.tokenizer_source import GGUFTokenizer
from outpace.text.gguf_tokenizer import GGUFCodec
from outpace.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "tokenizer"
PATH = Path("small.gguf")


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def source(tokens: Sequence[str], types: Sequence[int] | None = None, **fields: Any) -> GGUFTokenizer:
    """Byte-level without merges, unless `fields` say otherwise."""
    made = GGUFTokenizer(
        model="gpt2",
        pre="gpt-2",
        tokens=list(tokens),
        scores=None,
        token_types=None if types is None else np.array(types, np.int32),
        merges=[],
        bos_id=None,
        eos_id=None,
        eot_id=None,
        eom_id=None,
        unk_id=None,
        padding_id=None,
        add_bos=None,
        add_eos=None,
        add_space_prefix=None,
        chat_template=None,
        named_chat_templates={},
    )
    return replace(made, **fields)


def scored_source(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], **fields: Any
) -> GGUFTokenizer:
    return source(
        tokens, types, **{"model": "llama", "merges": None, "scores": np.array(scores, np.float32)} | fields
    )


def tokenizer(made: GGUFTokenizer, *, lazy: bool = False) -> Tokenizer:
    return Tokenizer(GGUFCodec(made, PATH, lazy=lazy))


def small_scored(**fields: Any) -> Tokenizer:
    """A SentencePiece vocabulary: control, bytes, some letters and pieces of words."""
    pieces = [
        "▁",
        "h",
        "e",
        "l",
        "o",
        "w",
        "r",
        "d",
        "▁h",
        "▁w",
        "ll",
        "▁he",
        "or",
        "ld",
        "▁hell",
        "▁hello",
        "é",
        "▁world",
        "▁wor",
    ]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    return tokenizer(scored_source(tokens, scores, types, **fields))
