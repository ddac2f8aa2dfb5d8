"""From the wire's fields to `SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outpace.server.ollama.schema import Common, Options
from outpace.types import SamplingParams

_DEFAULTS: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
"""Ollama's own."""

RENAMED = {"max_tokens": "options.num_predict", "repetition_penalty": "options.repeat_penalty"}
"""The engine's names for parameters that the wire spells differently."""


def sampling(request: Common, defaults: Mapping[str, float]) -> SamplingParams:
    """The sampling parameters."""
    options = request.options or Options()
    given: dict[str, Any] = {**_DEFAULTS, **defaults}
    for ours, theirs in (
        ("temperature", options.temperature),
        ("top_k", options.top_k),
        ("top_p", options.top_p),
        ("min_p", options.min_p),
        ("repetition_penalty", options.repeat_penalty),
        ("presence_penalty", options.presence_penalty),
        ("frequency_penalty", options.frequency_penalty),
        ("seed", options.seed),
    ):
        if theirs is not None:
            given[ours] = theirs
    if options.num_predict is not None and options.num_predict > 0:
        given["max_tokens"] = options.num_predict
    stop = options.stop
    given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return SamplingParams(**given)


def plain_name(model: str | None) -> str | None:
    """A model's name without a tag that says nothing (":latest")."""
    return model.removesuffix(":latest") if model else None
