"""Where a checkpoint's tokenizer comes from: GGUF metadata, or the files beside safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from outpace.errors import UnsupportedModelError
from outpace.models.fields import Fields
from outpace.models.gguf import GGUFFile


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFTokenizer:
    """The `tokenizer.*` keys of a GGUF file, their shapes and ids checked. None where a key is absent."""

    model: str  # "gpt2" (byte-level BPE), "llama" (SentencePiece-style BPE), ...
    pre: str  # which regular expression splits text before BPE; "default" where absent
    tokens: list[str]  # [vocab_size]
    scores: NDArray[np.float32] | None  # [vocab_size]
    token_types: NDArray[np.int32] | None  # [vocab_size] 1 normal 2 unknown 3 control 4 user 5 unused 6 byte
    merges: list[str] | None  # "left right", best first
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None  # end of a turn
    eom_id: int | None  # end of a message that calls a tool
    unk_id: int | None
    padding_id: int | None
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None
    chat_template: str | None
    named_chat_templates: dict[str, str]  # by name ("tool_use", ...), the default left out


@dataclass(frozen=True, slots=True)
class HFTokenizer:
    """A directory with tokenizer.json and tokenizer_config.json."""

    directory: Path


TokenizerSource = GGUFTokenizer | HFTokenizer

_PREFIX = "tokenizer.ggml."


def gguf_tokenizer(file: GGUFFile, vocab_size: int) -> GGUFTokenizer:
    """The tokenizer of a GGUF file whose embedding has `vocab_size` rows.

    Raises `ModelFormatError` where an array or an id does not fit the vocabulary.
    """
    fields = Fields(file.path, file.metadata)
    model = fields.text(_PREFIX + "model")
    if model in ("none", "no_vocab"):
        raise UnsupportedModelError(
            f"{file.path}: {_PREFIX}model: is {model!r}; a model without a tokenizer is not run"
        )
    tokens = fields.texts(_PREFIX + "tokens")
    if len(tokens) != vocab_size:
        raise fields.error(
            _PREFIX + "tokens", f"has {len(tokens)} tokens, but token_embd.weight has {vocab_size} rows"
        )

    def token_id(name: str) -> int | None:
        key = f"{_PREFIX}{name}_token_id"
        if not fields.has(key):
            return None
        value = fields.integer(key, -1, 2**32 - 1)
        if value in (-1, 2**32 - 1):  # how converters write "none", signed and unsigned
            return None
        return fields.integer(key, 0, vocab_size - 1)

    def flag(name: str) -> bool | None:
        return fields.flag(_PREFIX + name, False) if fields.has(_PREFIX + name) else None

    template = "tokenizer.chat_template"
    return GGUFTokenizer(
        model=model,
        pre=fields.text(_PREFIX + "pre", "default"),
        tokens=tokens,
        scores=_array(fields, "scores", vocab_size, np.float32),
        token_types=_array(fields, "token_type", vocab_size, np.int32),
        merges=fields.texts(_PREFIX + "merges") if fields.has(_PREFIX + "merges") else None,
        bos_id=token_id("bos"),
        eos_id=token_id("eos"),
        eot_id=token_id("eot"),
        eom_id=token_id("eom"),
        unk_id=token_id("unknown"),
        padding_id=token_id("padding"),
        add_bos=flag("add_bos_token"),
        add_eos=flag("add_eos_token"),
        add_space_prefix=flag("add_space_prefix"),
        chat_template=fields.text(template) if fields.has(template) else None,
        named_chat_templates={
            key.removeprefix(template + "."): fields.text(key)
            for key in file.metadata
            if key.startswith(template + ".")
        },
    )


def _array(fields: Fields, name: str, count: int, dtype: type[np.generic]) -> NDArray[Any] | None:
    key = _PREFIX + name
    if not fields.has(key):
        return None
    value = fields.raw(key)
    if not isinstance(value, np.ndarray):
        raise fields.error(key, f"is not an array of {np.dtype(dtype).name}")
    array = cast("NDArray[Any]", value)
    if array.dtype != np.dtype(dtype):
        raise fields.error(key, f"is an array of {array.dtype.name}, not of {np.dtype(dtype).name}")
    if len(array) != count:
        raise fields.error(key, f"has {len(array)} values for {count} tokens")
    return array
