"""Outpace: a speed-first LLM inference engine. Speed never changes an answer.

    from outpace import LLM, SamplingParams

    with LLM() as llm:
        print(llm.generate("The capital of France is", SamplingParams(max_tokens=8))[0].outputs[0].text)

Importing this loads neither the engine, torch nor the web framework; the names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outpace.llm import LLM, CompletionOutput, RequestOutput
    from outpace.types import FinishReason, SamplingParams, TokenDelta

__all__ = [
    "LLM",
    "CompletionOutput",
    "FinishReason",
    "RequestOutput",
    "SamplingParams",
    "TokenDelta",
    "__version__",
]

__version__ = "0.1.0"


_HOMES = {
    "LLM": "outpace.llm",
    "CompletionOutput": "outpace.llm",
    "RequestOutput": "outpace.llm",
    "FinishReason": "outpace.types",
    "SamplingParams": "outpace.types",
    "TokenDelta": "outpace.types",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
