"""The tokenizer that the rest of Outpace sees, whatever file it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from outpace.errors import InvalidParameterError, UnsupportedModelError
from outpace.models.checkpoint import Checkpoint
from outpace.models.tokenizer_source import GGUFTokenizer
from outpace.text.chat_template import ChatTemplate
from outpace.text.codec import Codec
from outpace.text.gguf_tokenizer import GGUFCodec
from outpace.text.huggingface_template import template_from_directory
from outpace.text.huggingface_tokenizer import HuggingFaceCodec


class Tokenizer:
    """Text to token ids and back, exactly as the model's own tokenizer does it.

    Attributes: `vocab_size`, the rows of the model's output, of which the last may have no text; `bos_id`;
    `eos_ids`, every id that ends a generation; `special_ids`, ids that steer the model and are no text;
    `strips_leading_space`, whether decoding takes away the space that encoding puts before a text;
    `chat_template`, None where the model has none.

    Safe to use from several threads.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        vocab_size: int = 0,
        chat_template: ChatTemplate | None = None,
        name: str = "the model",
    ) -> None:
        """`vocab_size`, where it is larger than the tokenizer's, is the rows of the model's output."""
        self.vocab_size = max(codec.size, vocab_size)
        self.bos_id = codec.bos_id
        self.eos_ids = codec.eos_ids
        self.special_ids = codec.special_ids
        self.strips_leading_space = codec.strips_leading_space
        self.chat_template = chat_template
        self._codec = codec
        self._name = name
        # [vocab_size] bytes of each token, filled in when first asked for; special tokens hold b"".
        self.text_bytes: list[bytes | None] = [None] * self.vocab_size

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, lazy: bool = False) -> Tokenizer:
        """The tokenizer of a model on disk.

        With `lazy`, what the first text can do without is built for the second one (0.2 s): for programs
        that encode one and end.

        Raises `ModelFormatError` for damaged data, `UnsupportedModelError` for another algorithm.
        """
        source = checkpoint.tokenizer
        if isinstance(source, GGUFTokenizer):
            codec = GGUFCodec(source, checkpoint.path, lazy=lazy)
            template = _gguf_template(source, codec, checkpoint)
        else:
            codec = HuggingFaceCodec(source.directory)
            template = template_from_directory(source.directory)
        return cls(codec, vocab_size=checkpoint.spec.vocab_size, chat_template=template, name=checkpoint.name)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        `add_special` adds what the model expects around a text (a bos token, often nothing). With
        `parse_special` the texts of control tokens become those tokens, which is right for a rendered chat
        template and wrong for what a user wrote. Raises `InvalidParameterError` for a lone surrogate.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidParameterError(
                f"the text holds a lone surrogate ({text[error.start]!r} at character {error.start}), "
                "which no UTF-8 text can; send valid Unicode",
                "prompt",
            ) from None
        return self._codec.encode(text, add_special=add_special, parse_special=parse_special)

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `token_ids`; bytes that are no UTF-8 become U+FFFD as `bytes.decode` makes them.

        `skip_special` leaves special tokens out. Raises `InvalidParameterError` for an id out of range.
        """
        text = b"".join(
            [self.token_bytes(token_id, skip_special=skip_special) for token_id in token_ids]
        ).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """The bytes that a token adds to a text; b"" for special tokens where they are skipped.

        Raises `InvalidParameterError` for an id out of range.
        """
        if not 0 <= token_id < self.vocab_size:
            raise InvalidParameterError(
                f"token id {token_id} is out of range; the vocabulary has {self.vocab_size} tokens", "prompt"
            )
        if skip_special:
            known = self.text_bytes[token_id]
            if known is not None:
                return known
        if token_id >= self._codec.size or (skip_special and token_id in self.special_ids):
            spelled = b""
        else:
            spelled = self._codec.token_bytes(token_id)
        if skip_special:
            self.text_bytes[token_id] = spelled
        return spelled

    def token_id(self, text: str) -> int | None:
        """The id of the token that the vocabulary writes as `text`, or None."""
        return self._codec.token_id(text)

    def token_text(self, token_id: int) -> str:
        """A token as the vocabulary writes it, for people to look at; empty for ids without one."""
        return self._codec.token_text(token_id) if 0 <= token_id < self._codec.size else ""

    def digest(self) -> bytes:
        """SHA-256 of all tokens as the vocabulary writes them, by their ids: of what an id means."""
        return hashlib.sha256("\0".join(self._codec.texts).encode("utf-8", "surrogatepass")).digest()

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **extra: object,
    ) -> str:
        """Messages as the text that the model expects: encode it with `parse_special`, without `add_special`.

        Raises `UnsupportedModelError` where the model has no chat template, else as `ChatTemplate.render`.
        """
        if self.chat_template is None:
            raise UnsupportedModelError(
                f"{self._name} has no chat template, so it cannot chat; complete plain text instead "
                "(`outpace run`, /v1/completions), or use an instruction-tuned model"
            )
        return self.chat_template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **extra
        )


def _gguf_template(source: GGUFTokenizer, codec: GGUFCodec, checkpoint: Checkpoint) -> ChatTemplate | None:
    if source.chat_template is None:
        return None

    def text(token_id: int | None) -> str:
        return "" if token_id is None else codec.token_text(token_id)

    return ChatTemplate(
        source.chat_template,
        text(codec.bos_id),
        text(codec.eos_id),
        tool_source=source.named_chat_templates.get("tool_use"),
        name=f"{checkpoint.path}: tokenizer.chat_template",
    )
