"""Embeddings as both dialects ask for them: texts or token ids in, unit vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from starlette.requests import Request

from outpace.server.client import client_scope
from outpace.server.errors import APIError, from_exception
from outpace.server.served import ServedModel
from outpace.types import DraftHints, Float32Array, SamplingParams

_PARAMS = SamplingParams(max_tokens=1, temperature=0.0, seed=0, ignore_eos=True, embed=True)
"""One token ends the prompt's last step; nobody sees it."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector of length 1 for each input, and how many tokens the inputs had together."""

    vectors: list[Float32Array]
    num_tokens: int


async def embed(
    served: ServedModel,
    request: Request,
    inputs: Sequence[str | Sequence[int]],
    *,
    dimensions: int | None,
    most_tokens: int | None = None,
) -> Embeddings:
    """The mean of each input's final hidden states, cut to `dimensions` and then scaled to length 1.

    The inputs run as prompts among all others, chunk by chunk, so nobody's stream waits for them. With
    `most_tokens` longer inputs are cut, else refused where they don't fit. Raises `APIError`.
    """
    limit, size = served.settings.max_choices, served.llm.spec.hidden_size
    if not 0 < len(inputs) <= limit:
        message = f"'input' must hold 1 to {limit} inputs, not {len(inputs)}"
        raise APIError(400, message, param="input", code="invalid_value")
    if dimensions is not None and not 0 < dimensions <= size:
        message = f"'dimensions' must be from 1 to {size}, this model's hidden size, not {dimensions}"
        raise APIError(400, message, param="dimensions", code="invalid_value")

    def encode() -> list[Sequence[int]]:
        if most_tokens is None:
            return [served.llm.encode_prompt(each) for each in inputs]
        return [_token_ids(served, each)[:most_tokens] for each in inputs]

    try:
        prompts = await served.encode(sum(map(len, inputs)), encode)
    except Exception as error:
        raise _explain(error) from error
    means = await _means(served, request, prompts)
    vectors = [_unit(mean, dimensions) for mean in means]
    return Embeddings(vectors, sum(map(len, prompts)))


def _token_ids(served: ServedModel, text: str | Sequence[int]) -> Sequence[int]:
    return served.llm.tokenizer.encode(text, parse_special=True) if isinstance(text, str) else text


async def _means(
    served: ServedModel, request: Request, prompts: Sequence[Sequence[int]]
) -> list[tuple[float, ...]]:
    hints = DraftHints(client_scope(request), drafts=False)
    try:
        generation = await served.start(prompts, _PARAMS, hints)
    except Exception as error:
        raise _explain(error) from error
    means: dict[int, tuple[float, ...]] = {}
    async with generation.cancelled_on_disconnect(request.receive):
        async for index, delta in generation.deltas():
            if delta.embedding is not None:
                means[index] = delta.embedding
    return [means[index] for index in range(len(prompts))]


def _explain(error: Exception) -> APIError:
    return from_exception(error, {"prompt": "input", "messages": "input"})


def _unit(mean: tuple[float, ...], dimensions: int | None) -> Float32Array:
    vector = np.array(mean[:dimensions])
    length = float(np.sqrt((vector * vector).sum()))
    return (vector / length if length else vector).astype(np.float32)
