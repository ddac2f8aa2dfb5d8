"""From the wire's fields to `SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outpace.errors import ContextLengthError, OutOfMemoryError
from outpace.server.anthropic.schema import MessageRequest
from outpace.server.errors import APIError, from_exception
from outpace.types import SamplingParams

_RENAMED = {"stop": "stop_sequences"}
"""The engine's names for parameters that the wire spells differently."""


def message_params(request: MessageRequest, defaults: Mapping[str, float]) -> SamplingParams:
    """The sampling parameters of a message; `defaults` where it says none.

    Where it wants no token there is one all the same, which ends the prompt's last step and nobody sees.
    """
    given: dict[str, Any] = {**defaults, **request.said("temperature", "top_p", "top_k")}
    return SamplingParams(
        max_tokens=request.max_tokens or 1, stop=tuple(request.stop_sequences or ()), **given
    )


def explain(error: Exception) -> APIError:
    """Translate what the engine raised, as this API says it."""
    answer = from_exception(error, _RENAMED)
    match error:  # agents look for these words, and shorten the conversation where they find them
        case ContextLengthError(num_tokens=num_tokens, max_context=limit):
            answer.message = f"prompt is too long: {num_tokens} tokens > {limit} maximum: {error}"
        case OutOfMemoryError():
            answer.message = f"prompt is too long: {error}"
        case _:
            pass
    return answer
