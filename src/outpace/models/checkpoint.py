"""A checkpoint: a model's spec, where its tensors lie on disk, and where its tokenizer comes from.

`open_checkpoint` reads headers only, and checks that every tensor that the spec asks for is there, with
the right shape and of a type that Outpace runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from outpace.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
from outpace.models import names
from outpace.models.architectures import FAMILIES, expected_tensors
from outpace.models.ggml_types import FLOAT_DTYPES, GGML_TYPES, SUPPORTED_DTYPES
from outpace.models.gguf import GGUFTensor, is_gguf
from outpace.models.gguf_spec import spec_from_gguf
from outpace.models.gguf_split import read_gguf_model
from outpace.models.huggingface_spec import spec_from_config
from outpace.models.safetensors import SafetensorsTensor, read_safetensors_directory
from outpace.models.tokenizer_source import GGUFTokenizer, HFTokenizer, TokenizerSource, gguf_tokenizer
from outpace.types import ModelSpec, TensorRef, WeightFormat

__all__ = ["Checkpoint", "GGUFTokenizer", "HFTokenizer", "TokenizerSource", "open_checkpoint"]

_PART = re.compile(r"-00001-of-\d{5}$")
_BITS_PER_WEIGHT = {each.name: each.block_bytes * 8 / each.block_size for each in GGML_TYPES.values()}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk: its header is read and checked, its weights are not."""

    name: str  # a file's stem, a directory's name, or owner/name from the Hugging Face cache
    path: Path  # the .gguf file or the safetensors directory
    spec: ModelSpec
    tensors: Mapping[str, TensorRef]  # by canonical name, see `outpace.models.names`
    tokenizer: TokenizerSource

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    def weight_bytes(self, weight_format: WeightFormat) -> int:
        """What the weights take in memory once they are of that format, within a few percent."""
        most = _BITS_PER_WEIGHT.get(weight_format.upper(), math.inf)
        return int(
            sum(
                tensor.num_bytes * min(1.0, most / _BITS_PER_WEIGHT[tensor.dtype])
                for tensor in self.tensors.values()
            )
        )


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF file or a directory with config.json and safetensors.

    Raises `ModelNotFoundError`, `ModelFormatError` (naming file and field) or `UnsupportedModelError`.
    """
    if path.is_dir():
        return _open_safetensors(path)
    if not path.is_file():
        kind = "neither a file nor a folder" if path.exists() else "no such file or directory"
        raise ModelNotFoundError(f"{path}: {kind}")
    try:
        gguf = is_gguf(path)
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error
    if gguf:
        return _open_gguf(path)
    if path.suffix == ".safetensors":
        raise ModelNotFoundError(
            f"{path}: weights alone are no model; give the directory that has config.json too"
        )
    raise ModelFormatError(path, "magic", "this is neither a GGUF file nor a safetensors directory")


def _open_gguf(path: Path) -> Checkpoint:
    file = read_gguf_model(path)
    spec = spec_from_gguf(file)
    tensors = _references(file.tensors.values(), names.from_gguf)
    _check(path, spec, tensors, names.to_gguf)
    return Checkpoint(_PART.sub("", path.stem), path, spec, tensors, gguf_tokenizer(file, spec.vocab_size))


def _open_safetensors(directory: Path) -> Checkpoint:
    config = directory / "config.json"
    if not config.is_file():
        raise ModelNotFoundError(
            f"{directory}: has no config.json; give a .gguf file or a safetensors directory"
        )
    found = read_safetensors_directory(directory)
    output = names.to_huggingface("output")
    spec = spec_from_config(config, has_output=output in found)
    if spec.tied_embeddings:
        found.pop(output, None)  # some files carry the embedding twice
    tensors = _references(found.values(), names.from_huggingface)
    _check(directory, spec, tensors, names.to_huggingface)
    return Checkpoint(_directory_name(directory), directory, spec, tensors, HFTokenizer(directory))


def _references(
    found: Iterable[GGUFTensor | SafetensorsTensor], canonical: Callable[[str], str | None]
) -> dict[str, TensorRef]:
    """By canonical name. A tensor that no spec knows would change the answer: an error."""
    tensors: dict[str, TensorRef] = {}
    for tensor in found:
        name = canonical(tensor.name)
        if name is not None:
            tensors[name] = TensorRef(
                name, tensor.path, tensor.offset, tensor.num_bytes, tensor.dtype, tensor.shape
            )
        elif not names.is_derived(tensor.name):
            raise UnsupportedModelError(
                f"{tensor.path}: {tensor.name!a}: Outpace does not know what this tensor does"
            )
    return tensors


def _check(
    path: Path, spec: ModelSpec, tensors: Mapping[str, TensorRef], original: Callable[[str], str]
) -> None:
    """Every tensor that the spec asks for, none beyond, each with its shape and a type that is run."""
    expected: set[str] = set()
    for need in expected_tensors(spec):
        expected.add(need.name)
        tensor = tensors.get(need.name)
        if tensor is None:
            if need.optional:
                continue
            raise ModelFormatError(path, original(need.name), "this tensor is missing")
        if tensor.shape != need.shape:
            raise ModelFormatError(
                tensor.path, original(need.name), f"has the shape {tensor.shape}, not {need.shape}"
            )
        allowed = SUPPORTED_DTYPES if len(need.shape) == 2 else FLOAT_DTYPES
        if tensor.dtype not in allowed:
            raise UnsupportedModelError(
                f"{tensor.path}: {original(need.name)}: has the type {tensor.dtype}; "
                f"Outpace runs {', '.join(sorted(allowed))} here"
            )
    for name, tensor in tensors.items():
        if name not in expected:
            raise UnsupportedModelError(
                f"{tensor.path}: {original(name)}: a {spec.architecture} model with this tensor is not run"
            )
    _check_biases(path, spec, tensors, original)


def _check_biases(
    path: Path, spec: ModelSpec, tensors: Mapping[str, TensorRef], original: Callable[[str], str]
) -> None:
    """Where a family may have biases, a model has all of them or none."""
    if FAMILIES[spec.architecture].qkv_bias != "optional":
        return
    biases = [need.name for need in expected_tensors(spec) if need.optional]
    missing = [name for name in biases if name not in tensors]
    if missing and len(missing) != len(biases):
        raise ModelFormatError(
            path, original(missing[0]), "this tensor is missing, but others of its kind are there"
        )


def _directory_name(directory: Path) -> str:
    """`owner/name` for a snapshot in the Hugging Face cache (models--owner--name/snapshots/commit)."""
    resolved = directory.resolve()
    parents = resolved.parents
    if len(parents) >= 2 and parents[0].name == "snapshots" and parents[1].name.startswith("models--"):
        return parents[1].name.removeprefix("models--").replace("--", "/", 1)
    return resolved.name
