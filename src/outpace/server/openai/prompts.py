"""Prompts without a conversation: text or token ids, one or several."""

from __future__ import annotations

from collections.abc import Sequence

from outpace.server.errors import APIError
from outpace.server.served import ServedModel

Prompt = str | list[int]
Prompts = str | Sequence[str] | Sequence[int] | Sequence[list[int]]
"""As the wire has them. A list of numbers is one prompt."""


def checked_prompts(given: Prompts, served: ServedModel, param: str, limit: int) -> list[Prompt]:
    """The prompts, 1 to `limit` of them. Raises `APIError` that names `param`, the request's field."""
    vocab_size = served.llm.spec.vocab_size
    prompts: list[Prompt]
    if isinstance(given, str):
        prompts = [given]
    elif given and isinstance(given[0], int):
        prompts = [[token_id for token_id in given if isinstance(token_id, int)]]
    else:
        prompts = [each for each in given if not isinstance(each, int)]
    if not 0 < len(prompts) <= limit:
        of = " (for this 'n')" if param == "prompt" else ""
        message = f"'{param}' must hold 1 to {limit} {param}s{of}, not {len(prompts)}"
        raise APIError(400, message, param=param, code="invalid_value")
    if any(not 0 <= token < vocab_size for each in prompts if isinstance(each, list) for token in each):
        message = f"'{param}': token ids are from 0 to {vocab_size - 1}"
        raise APIError(400, message, param=param, code="invalid_value")
    return prompts
