"""`POST /infill`: fill in the middle, for editors that know llama.cpp's server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from outpace.server.body import read_json
from outpace.server.client import client_scope
from outpace.server.deadlines import deadline_of
from outpace.server.encoding import json_response, to_json
from outpace.server.errors import from_exception
from outpace.server.generation import Generation
from outpace.server.llama_cpp.schema import InfillRequest
from outpace.server.model_pool import ModelPool
from outpace.server.openapi import EVENTS, OPENAI_ERRORS, described
from outpace.server.served import ServedModel
from outpace.server.sse import EventStream
from outpace.server.timings import Timings, timed_text
from outpace.text.fill_in_middle import SourceFile, fill_in_middle
from outpace.types import DraftHints, FinishReason, SamplingParams, TokenDelta

_TEMPERATURE = 0.8
"""llama.cpp's default, unless the server has one (`--sampling`)."""


def infill_router(models: ModelPool) -> APIRouter:
    """The route over `models`."""
    router = APIRouter(responses=OPENAI_ERRORS)

    @router.post(
        "/infill", openapi_extra=described(body=InfillRequest, stream=EVENTS), response_class=Response
    )
    async def infill(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Fill in the middle; a stream of server-sent events with `stream`."""
        body = await read_json(request, InfillRequest, models.settings)
        deadline = deadline_of(request, body.deadline_ms)
        async with models.lease(None, deadline=deadline) as (served, name):
            return await _infill(served, name, request, body, deadline)

    return router


async def _infill(
    served: ServedModel, name: str, request: Request, body: InfillRequest, deadline: float
) -> Response:
    files = [SourceFile(each.filename, each.text) for each in body.input_extra or ()]
    num_chars = len(body.input_prefix) + len(body.input_suffix) + sum(len(file.text) for file in files)

    def encode() -> list[int]:
        return fill_in_middle(
            served.llm.tokenizer, body.input_prefix, body.input_suffix, files=files, begun=body.prompt or ""
        )

    try:
        prompt = await served.encode(num_chars, encode)
        hints = DraftHints(client_scope(request), deadline=deadline)
        generation = await served.start([prompt], _params(body, served.settings.sampling), hints)
    except Exception as error:
        raise from_exception(error, {"messages": "input_prefix"}) from error
    answer = _Answer(name, body)
    if body.stream:
        return EventStream(answer.events(generation), generation, served.settings.heartbeat)
    async with generation.cancelled_on_disconnect(request.receive):
        return json_response(await answer.whole(generation))


def _params(body: InfillRequest, defaults: Mapping[str, float]) -> SamplingParams:
    num_tokens = body.n_predict
    given: dict[str, Any] = {"temperature": _TEMPERATURE, **defaults} | {
        name: value
        for name, value in (
            ("temperature", None if body.temperature is None else max(0.0, body.temperature)),
            ("top_k", body.top_k),
            ("top_p", body.top_p),
            ("min_p", body.min_p),
            ("repetition_penalty", body.repeat_penalty),
            ("presence_penalty", body.presence_penalty),
            ("frequency_penalty", body.frequency_penalty),
        )
        if value is not None
    }
    return SamplingParams(
        max_tokens=None if num_tokens is None or num_tokens < 0 else max(1, num_tokens),
        seed=None if body.seed == -1 else body.seed,
        stop=tuple(body.stop or ()),
        **given,
    )


class _Answer:
    """Writes one answer in llama.cpp's form."""

    def __init__(self, name: str, body: InfillRequest) -> None:
        self._name = name
        self._fields = body.response_fields
        self._silent = body.n_predict == 0  # only to have the prompt in the cache
        self._timings = Timings()

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer in one piece."""
        text, last = await timed_text(generation, self._timings)
        return self._chosen(self._end(last, "" if self._silent else text))

    async def events(self, generation: Generation) -> AsyncGenerator[bytes]:
        """The answer as server-sent events."""
        async for _, delta in generation.deltas():
            self._timings.observe(delta)
            text = "" if self._silent else delta.text
            if delta.finish_reason is not None:
                yield f"data: {to_json(self._end(delta, text))}\n\n".encode()
            elif text:
                yield f"data: {to_json({'index': 0, 'content': text, 'stop': False})}\n\n".encode()

    def _end(self, last: TokenDelta, text: str) -> dict[str, Any]:
        times = self._timings
        kind = "limit" if last.finish_reason is FinishReason.LENGTH else "word" if last.stop else "eos"
        return {
            "index": 0,
            "content": text,
            "stop": True,
            "model": self._name,
            "tokens_predicted": last.num_output_tokens,
            "tokens_evaluated": last.num_prompt_tokens,
            "tokens_cached": last.num_cached_tokens,
            "truncated": False,
            "stop_type": kind,
            "stopping_word": last.stop or "",
            "timings": {
                "prompt_n": last.num_prompt_tokens - last.num_cached_tokens,
                "prompt_ms": times.prompt_seconds * 1e3,
                "predicted_n": last.num_output_tokens,
                "predicted_ms": times.decode_seconds * 1e3,
                "predicted_per_second": times.tokens_per_second,
            },
        }

    def _chosen(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The fields that the client wants, by their paths."""
        if not self._fields:
            return answer
        chosen: dict[str, Any] = {}
        for path in self._fields:
            value: Any = answer
            for name in path.split("/"):
                value = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
            if value is not None:
                chosen[path] = value
        return chosen
