"""Which of a repository's files make the model that was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from outpace.errors import ModelNotFoundError
from outpace.models.reference import RepositoryReference
from outpace.models.safetensors import INDEX_NAME, SINGLE_NAME

# Which GGUF file is taken where several are there and none is named: small and good first.
_PREFERRED = ("Q4_K_M", "Q4_0", "Q4_1", "Q4_K_S", "Q5_K_M", "Q5_0", "Q8_0", "Q6_K", "BF16", "F16")

_BESIDE_SAFETENSORS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_QUANTIZATION = re.compile(r"(UD-)?(I?Q\d\w*|TQ\d\w*|MXFP4\w*|B?F16|F32)", re.IGNORECASE)
_SAFETENSORS_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to bring, and the one to open; `entry` is "" for the directory as a whole."""

    files: tuple[str, ...]
    entry: str = ""


def select(reference: RepositoryReference, names: Sequence[str]) -> Selection:
    """The files, out of a repository's `names`, that the reference asks for.

    Raises `ModelNotFoundError` where none fits or the choice is not clear; the message lists what is there.
    """
    models = _gguf_files(names)
    if reference.file:
        return _gguf(models, _named(reference, models))
    if "config.json" in names and (SINGLE_NAME in names or INDEX_NAME in names):
        return _safetensors(names)
    for quantization in _PREFERRED:
        found = _whole_first(name for name in models if _has_quantization(name, quantization))
        if found:
            return _gguf(models, found[0])
    if len(whole := _first_parts(models)) == 1:
        return _gguf(models, whole[0])
    if not models:
        raise ModelNotFoundError(f"{reference}: has neither a .gguf file nor safetensors with a config.json")
    raise ModelNotFoundError(
        f"{reference}: say which file, with {reference}:NAME; there are: {_listed(models)}"
    )


def gguf_models(names: Iterable[str]) -> list[str]:
    """The GGUF models among `names`; of a split one the first part, and only where every part is there."""
    files = _gguf_files(names)
    return [name for name in _first_parts(files) if set(_parts(name)) <= set(files)]


def _gguf_files(names: Iterable[str]) -> list[str]:
    return sorted(n for n in names if n.lower().endswith(".gguf") and "mmproj" not in n.lower())


def _named(reference: RepositoryReference, models: Sequence[str]) -> str:
    """The one file that `:NAME` means: its name, its name without folder or suffix, or its quantization."""
    wanted = reference.file
    if wanted in models:
        return wanted
    lower = wanted.lower().removesuffix(".gguf")
    named = [m for m in models if lower in (m.lower().removesuffix(".gguf"), _stem(m))]
    found = _whole_first(named or [m for m in models if _has_quantization(m, wanted)])
    if len(found) == 1:
        return found[0]
    problem = "several files match" if found else "no such file"
    raise ModelNotFoundError(f"{reference}: {problem}; there are: {_listed(found or models)}")


def _has_quantization(name: str, quantization: str) -> bool:
    """Whether a file's name ends with a quantization, as in m-Q4_K_M.gguf or m.q4_k_m-00001-of-00002.gguf."""
    if _QUANTIZATION.fullmatch(quantization) is None:
        return False
    match = _SHARD.fullmatch(name)
    stem = _stem(match[1] if match else name)
    return re.search(rf"(^|[-._]){re.escape(quantization.lower())}$", stem) is not None


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower().removesuffix(".gguf")


def _first_parts(names: Iterable[str]) -> list[str]:
    """The files without the second and further parts of split ones."""
    return [name for name in names if (match := _SHARD.fullmatch(name)) is None or int(match[2]) == 1]


def _whole_first(names: Iterable[str]) -> list[str]:
    """As `_first_parts`; where a model is there whole and in parts, only the whole one."""
    found = _first_parts(names)
    return [name for name in found if not _SHARD.fullmatch(name)] or found


def _parts(name: str) -> tuple[str, ...]:
    """A file, with its other parts where it is split."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return (name,)
    return tuple(f"{match[1]}-{i:05d}-of-{match[3]}{name[-5:]}" for i in range(1, int(match[3]) + 1))


def _gguf(models: Sequence[str], name: str) -> Selection:
    parts = _parts(name)
    if missing := [part for part in parts if part not in models]:
        raise ModelNotFoundError(f"{missing[0]}: this part of a split model is missing from the repository")
    return Selection(parts, parts[0])


def _safetensors(names: Sequence[str]) -> Selection:
    if INDEX_NAME in names:
        weights = [INDEX_NAME, *(name for name in sorted(names) if _SAFETENSORS_SHARD.fullmatch(name))]
    else:
        weights = [SINGLE_NAME]
    return Selection((*(name for name in _BESIDE_SAFETENSORS if name in names), *weights))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20]) or "none"
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"
