"""From the wire's fields to `SamplingParams` and prompts."""

from __future__ import annotations

import json
from typing import Any

from outpace.server.errors import APIError, unsupported
from outpace.server.ollama.schema import ChatRequest, Common, GenerateRequest, Options
from outpace.types import Grammar, SamplingParams

_DEFAULTS: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
"""Ollama's own."""

RENAMED = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "grammar": "format",
}
"""The engine's names for parameters that the wire spells differently."""


def sampling(request: Common) -> SamplingParams:
    """The sampling parameters. Raises `APIError` for a format that is none."""
    options = request.options or Options()
    given: dict[str, Any] = dict(_DEFAULTS)
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
    return SamplingParams(**given, grammar=_grammar(request.format))


def _grammar(wanted: str | dict[str, Any] | None) -> Grammar | None:
    if wanted is None or wanted == "":
        return None
    if wanted == "json":
        return Grammar("json_schema", '{"type":"object"}')
    if isinstance(wanted, dict):
        return Grammar("json_schema", json.dumps(wanted))
    raise APIError(400, "'format' must be \"json\" or a JSON schema", param="format", code="invalid_value")


def chat_messages(request: ChatRequest) -> list[dict[str, Any]]:
    """The messages as chat templates take them. Raises `APIError` for what this model cannot be given."""
    if request.tools:
        raise unsupported("tools", "tools are not supported in this dialect yet; use /v1/chat/completions")
    for index, message in enumerate(request.messages):
        if message.images:
            raise unsupported(f"messages[{index}].images", "this model reads text only")
        if message.tool_calls or message.role == "tool":
            raise unsupported(f"messages[{index}]", "tools are not supported in this dialect yet")
    return [{"role": message.role, "content": message.content} for message in request.messages]


def generate_messages(request: GenerateRequest) -> list[dict[str, Any]]:
    """A prompt as the conversation that the template makes of it."""
    if request.images:
        raise unsupported("images", "this model reads text only")
    system = [{"role": "system", "content": request.system}] if request.system else []
    return [*system, {"role": "user", "content": request.prompt}]
