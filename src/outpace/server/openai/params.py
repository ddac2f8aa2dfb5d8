"""From the wire's fields to `SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outpace.server.errors import APIError, unsupported
from outpace.server.openai.schema import ChatRequest, CompletionRequest, SamplingFields
from outpace.types import SamplingParams

COMPLETION_MAX_TOKENS = 16
"""The API's default for text completions; chats run to the end of the context."""

_PLAIN_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "n",
    "ignore_eos",
)


@dataclass(frozen=True, slots=True)
class WireParams:
    """The sampling parameters, and how the engine's names for them are spelt in this request."""

    params: SamplingParams
    renamed: Mapping[str, str]


def chat_params(request: ChatRequest, defaults: Mapping[str, float]) -> WireParams:
    """The parameters of a chat; `defaults` where it says none.

    Raises `APIError` for what is not supported or contradicts itself.
    """
    _check_chat_features(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise APIError(
            400, "'top_logprobs' needs 'logprobs': true", param="top_logprobs", code="invalid_value"
        )
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    max_tokens, renamed = request.max_tokens, {"logprobs": "top_logprobs"}
    if request.max_completion_tokens is not None:
        max_tokens = request.max_completion_tokens
        renamed["max_tokens"] = "max_completion_tokens"
    return WireParams(_params(request, max_tokens, logprobs, defaults), renamed)


def completion_params(request: CompletionRequest, defaults: Mapping[str, float]) -> WireParams:
    """The parameters of a text completion; `defaults` where it says none.

    Raises `APIError` for what is not supported.
    """
    if request.suffix and request.echo:
        raise unsupported("suffix", "'suffix' together with 'echo' is not supported; ask for one of them")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise unsupported("best_of", "'best_of' other than 'n' is not supported; leave it out")
    if request.echo and request.logprobs is not None:
        raise unsupported("echo", "'echo' together with 'logprobs' is not supported; ask for one of them")
    max_tokens = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    return WireParams(_params(request, max_tokens, request.logprobs, defaults), {})


def _params(
    request: SamplingFields, max_tokens: int | None, logprobs: int | None, defaults: Mapping[str, float]
) -> SamplingParams:
    if request.stream_options is not None and not request.stream:
        message = "'stream_options' is for streams; set 'stream': true or leave it out"
        raise APIError(400, message, param="stream_options", code="invalid_value")
    given: dict[str, Any] = {**defaults, **request.said(*_PLAIN_FIELDS)}
    if request.top_k == -1:  # how vLLM's users say "off"
        given["top_k"] = 0
    stop = request.stop
    return SamplingParams(
        max_tokens=max_tokens,
        logprobs=logprobs,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        **given,
    )


def _check_chat_features(request: ChatRequest) -> None:
    if request.functions and request.function_call != "none":
        raise unsupported("functions", "'functions' are not supported; send them as 'tools'")
    if any(modality != "text" for modality in request.modalities or ()):
        raise unsupported("modalities", "'modalities' other than text are not supported")
