"""`outpace show`: what a model is, from its header; weights are not read."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Annotated, Any, cast

import typer

from outpace.models import hub
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.models.tokenizer_source import GGUFTokenizer
from outpace.models.transfer import size_text


def show(
    model: Annotated[str, typer.Argument(help="A path, a short name or a repository.")] = hub.DEFAULT_MODEL,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Show what a model is: architecture, sizes, tensor types, tokenizer."""
    facts = describe(open_checkpoint(hub.locate(model)))
    if as_json:
        typer.echo(json.dumps(facts))
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        typer.echo(f"{key.replace('_', ' ').ljust(width)}  {_text(key, value)}")


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's facts under stable names; sizes in bytes, contexts in tokens."""
    spec, tensors = checkpoint.spec, checkpoint.tensors.values()
    by_type = Counter[str]()
    for tensor in tensors:
        by_type[tensor.dtype] += tensor.num_bytes
    source = checkpoint.tokenizer
    in_gguf = isinstance(source, GGUFTokenizer)
    return {
        "name": checkpoint.name,
        "path": str(checkpoint.path),
        "architecture": spec.architecture,
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "tensor_bytes": checkpoint.num_bytes,
        "tensor_types": dict(by_type.most_common()),
        "max_context": spec.max_context,
        "layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "heads": spec.num_heads,
        "kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "tied_embeddings": spec.tied_embeddings,
        "sliding_window": spec.sliding_window,
        "tokenizer": f"{source.model} / {source.pre}" if in_gguf else "tokenizer.json",
    }


def _text(key: str, value: object) -> str:
    if isinstance(value, dict):
        sizes = cast("dict[str, int]", value)
        return ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items())
    if key == "tensor_bytes" and isinstance(value, int):
        return size_text(value)
    if key == "sliding_window" and not value:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
