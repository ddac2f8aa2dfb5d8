"""The chat template of a directory in the Hugging Face layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from outpace.errors import ModelFormatError
from outpace.text.chat_template import ChatTemplate
from outpace.text.huggingface_tokenizer import JsonObject, read_json_object, special_token_text

_SPECIAL_TOKENS = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def template_from_directory(directory: Path) -> ChatTemplate | None:
    """From chat_template.jinja, or tokenizer_config.json's `chat_template`; None where there is neither.

    Raises `ModelFormatError`.
    """
    config = read_json_object(directory / "tokenizer_config.json")
    sources = _sources(directory, config)
    if not sources:
        return None
    named = {
        name: special_token_text(config.get(name)) for name in (*_SPECIAL_TOKENS, "bos_token", "eos_token")
    }
    texts = {name: text for name, text in named.items() if text is not None}
    return ChatTemplate(
        sources.get("default") or next(iter(sources.values())),
        texts.pop("bos_token", ""),
        texts.pop("eos_token", ""),
        tool_source=sources.get("tool_use"),
        special_tokens=texts,
        name=f"{directory}: chat template",
    )


def _sources(directory: Path, config: JsonObject) -> dict[str, str]:
    """Templates by name; a file goes before what the configuration holds."""
    value: object = config.get("chat_template")
    sources: dict[str, str] = {}
    if isinstance(value, str):
        sources["default"] = value
    elif isinstance(value, list):
        for entry in cast(list[Any], value):
            match entry:
                case {"name": str(name), "template": str(template)}:
                    sources[name] = template
                case _:
                    raise ModelFormatError(
                        directory / "tokenizer_config.json",
                        "chat_template",
                        "is not a list of name and template",
                    )
    elif value is not None:
        raise ModelFormatError(directory / "tokenizer_config.json", "chat_template", "is not text")
    files = {"default": directory / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    for name, path in files.items():
        try:
            sources[name] = path.read_text("utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFormatError(path, "text", str(error)) from None
    return sources
