"""What the `tiny_checkpoint` fixture gives; light to import, unlike `tiny`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TinyCheckpoint:
    """A tiny checkpoint on disk, and the model that holds exactly the file's weights in float32."""

    path: Path
    model: PreTrainedModel


class TinyFactory(Protocol):
    """Makes a checkpoint of a variant of `tiny.VARIANTS`, once for a session."""

    def __call__(
        self,
        variant: str,
        form: Literal["gguf", "safetensors"] = "gguf",
        dtype: str = "F32",
        output: str | None = None,
    ) -> TinyCheckpoint:
        """`dtype` is that of all matrices in the file, `output` that of an untied output, if it differs."""
        ...
