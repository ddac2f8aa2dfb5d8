"""A tokenizer from a directory with tokenizer.json, run by the `tokenizers` library as it says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from outpace.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
from outpace.text.bpe import (
    SPACE_MARK,
    byte_level_bytes,
    byte_token_value,
    encode_with,
    guarded,
    marked_bytes,
)
from outpace.text.special_tokens import known_ends

JsonObject = Mapping[str, Any]


class HuggingFaceCodec:
    """tokenizer.json and the files beside it. Implements `Codec`."""

    def __init__(self, directory: Path) -> None:
        """Raises `ModelNotFoundError`, `ModelFormatError` or `UnsupportedModelError`."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelNotFoundError(
                f"{path}: not found; write it with transformers' save_pretrained, or use a GGUF file"
            )
        try:
            self._tokenizer = guarded(lambda: Tokenizer.from_file(str(path)))
        except ValueError as error:
            raise ModelFormatError(path, "tokenizer.json", str(error)) from None
        # A prompt is never cut, whatever the training set-up left in the file.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._lock = threading.Lock()
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        # Ids may have gaps, so the count of tokens is not the end of them.
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self._texts = {token_id: text for text, token_id in vocab.items()}
        self.size = max(self._texts, default=-1) + 1
        self._spell, self.strips_leading_space = _decoder(path, _component(self._tokenizer.decoder))
        config = read_json_object(directory / "tokenizer_config.json")
        self.bos_id = self._named(config.get("bos_token"))
        self.eos_ids = self._ends(directory, config)

    @property
    def texts(self) -> list[str]:
        """All tokens as the vocabulary writes them, [size]; empty for ids in a gap."""
        return [self._texts.get(token_id, "") for token_id in range(self.size)]

    def _named(self, token: object) -> int | None:
        """The id of a token that a configuration names by text, or by an object with its content."""
        text = special_token_text(token)
        return None if text is None else self._tokenizer.token_to_id(text)

    def _ends(self, directory: Path, config: JsonObject) -> frozenset[int]:
        ends = known_ends({self._added[token_id]: token_id for token_id in self.special_ids})
        eos_id = self._named(config.get("eos_token"))
        if eos_id is not None:
            ends.add(eos_id)
        for name in ("generation_config.json", "config.json"):
            value = read_json_object(directory / name).get("eos_token_id")
            for token_id in cast(list[object], value) if isinstance(value, list) else [value]:
                if isinstance(token_id, int) and not isinstance(token_id, bool) and token_id >= 0:
                    ends.add(token_id)
        return frozenset(ends)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """See `outpace.text.tokenizer.Tokenizer.encode`."""
        with self._lock:  # the switch is the tokenizer's, not the call's
            if self._tokenizer.encode_special_tokens == parse_special:
                self._tokenizer.encode_special_tokens = not parse_special
            return encode_with(self._tokenizer, text, add_special=add_special)

    def token_id(self, text: str) -> int | None:
        """The id of the token with exactly this text, or None."""
        return self._tokenizer.token_to_id(text)

    def token_text(self, token_id: int) -> str:
        """The text of a token as the vocabulary writes it; empty for an id in a gap."""
        return self._texts.get(token_id, "")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; a special token stands for its own text."""
        if token_id in self._added:
            return self._added[token_id].encode("utf-8", "replace")
        return self._spell(self._texts.get(token_id, ""))


def read_json_object(path: Path) -> JsonObject:
    """A JSON file's object; empty where there is no file. Raises `ModelFormatError`."""
    try:
        value: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:
        raise ModelFormatError(path, "JSON", str(error)) from None
    if not isinstance(value, dict):
        raise ModelFormatError(path, "JSON", "is not an object")
    return cast(dict[str, Any], value)


def special_token_text(token: object) -> str | None:
    """A special token's text as tokenizer_config.json writes it: a string, or an object with `content`."""
    if isinstance(token, dict):
        token = cast(dict[str, object], token).get("content")
    return token if isinstance(token, str) else None


def _component(part: object) -> JsonObject:
    """A part of the pipeline as its JSON object, which is how the library pickles it."""
    if part is None:
        return {}
    state = part.__getstate__()
    return cast(JsonObject, json.loads(state)) if isinstance(state, bytes) else {}


def _steps(decoder: JsonObject) -> Iterator[JsonObject]:
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    elif decoder:
        yield decoder


def _decoder(path: Path, decoder: JsonObject) -> tuple[Callable[[str], bytes], bool]:
    """How this decoder spells one token, and whether it takes a space from the start of a text."""
    steps = list(_steps(decoder))
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return byte_level_bytes, False
    strips = any(_strips(step) for step in steps)
    marks = any(_unmarks(step) for step in steps)
    if marks and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return (_marked_or_byte if "ByteFallback" in kinds else marked_bytes), strips
    raise UnsupportedModelError(
        f"{path}: decoder: {' + '.join(sorted(kinds)) or 'none'} is not supported; "
        "Outpace decodes byte-level BPE and SentencePiece tokenizers"
    )


def _unmarks(step: JsonObject) -> bool:
    if step["type"] == "Metaspace":
        return step.get("replacement", SPACE_MARK) == SPACE_MARK
    return step["type"] == "Replace" and step["pattern"] == {"String": SPACE_MARK} and step["content"] == " "


def _strips(step: JsonObject) -> bool:
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme", "always") != "never"
    return step["type"] == "Strip" and step["content"] == " " and step["start"] == 1


def _marked_or_byte(token: str) -> bytes:
    value = byte_token_value(token)
    return marked_bytes(token) if value is None else value
