"""`POST /v1/completions`."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from outpace.errors import UnsupportedModelError
from outpace.server.body import read_json
from outpace.server.client import client_scope
from outpace.server.constraint import compiled_format
from outpace.server.deadlines import deadline_of
from outpace.server.encoding import json_response
from outpace.server.errors import APIError, from_exception
from outpace.server.generation import Generation
from outpace.server.lanes import lane_of
from outpace.server.model_pool import ModelPool
from outpace.server.openai.choices import Choice, collect
from outpace.server.openai.events import EventText
from outpace.server.openai.logprobs import CompletionLogprobs
from outpace.server.openai.params import completion_params
from outpace.server.openai.prompts import Prompt, checked_prompts
from outpace.server.openai.response_format import answer_format
from outpace.server.openai.schema import CompletionRequest
from outpace.server.served import ServedModel
from outpace.server.sse import DONE, EventStream
from outpace.text.fill_in_middle import fill_in_middle
from outpace.types import DraftHints, Lane, TokenDelta


async def create_completion(models: ModelPool, request: Request) -> Response:
    """Complete one prompt or several, in one piece or as a stream. Raises `APIError`."""
    body = await read_json(request, CompletionRequest, models.settings)
    deadline = deadline_of(request, body.deadline_ms)
    async with models.lease(body.model, deadline=deadline) as (served, name):
        return await _answer(served, name, request, body, deadline)


async def _answer(
    served: ServedModel, name: str, request: Request, body: CompletionRequest, deadline: float
) -> Response:
    wire = completion_params(body, served.settings.sampling)
    prompts = checked_prompts(
        body.prompt, served, "prompt", served.settings.max_choices // max(1, body.n or 1)
    )
    num_chars = sum(len(prompt) for prompt in prompts)
    decode = served.llm.tokenizer.decode

    def encode_prompt(prompt: Prompt) -> list[int]:
        if not body.suffix:
            return served.llm.encode_prompt(prompt)
        text = prompt if isinstance(prompt, str) else decode(prompt)
        return fill_in_middle(served.llm.tokenizer, text, body.suffix)

    try:
        encoded = await served.encode(num_chars, lambda: [encode_prompt(prompt) for prompt in prompts])
        echoes = (
            [decode(p) if isinstance(p, list) else p for p in prompts] if body.echo else [""] * len(prompts)
        )
        params = replace(wire.params, grammar=await compiled_format(served, answer_format(body)))
        hints = DraftHints(client_scope(request), lane=lane_of(body.service_tier), deadline=deadline)
        generation = await served.start(encoded, params, hints)
    except UnsupportedModelError as error:
        raise APIError(400, str(error), param="suffix", code="unsupported_by_model") from error
    except Exception as error:
        raise from_exception(error, {"messages": "prompt", **wire.renamed}) from error
    answer = CompletionAnswer(
        served, name, hints.lane, echoes, wire.params.n, with_logprobs=wire.params.logprobs is not None
    )
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = answer.events(generation, with_usage=with_usage)
        return EventStream(events, generation, served.settings.heartbeat)
    async with generation.cancelled_on_disconnect(request.receive):
        choices = await collect(generation)
    return json_response(answer.whole(choices, generation))


class CompletionAnswer:
    """Writes one answer in the text completion format.

    `name` is the model's, as the answer shows it; `echoes` come before the text of each prompt.
    """

    def __init__(
        self,
        served: ServedModel,
        name: str,
        lane: Lane,
        echoes: list[str],
        num_choices: int,
        *,
        with_logprobs: bool,
    ) -> None:
        self._served = served
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": served.created_now(),
            "model": name,
            "service_tier": lane,
        }
        self._echoes = [echo for echo in echoes for _ in range(num_choices)]
        self._logprobs: list[CompletionLogprobs] | None = None
        if with_logprobs:
            self._logprobs = [CompletionLogprobs(served.llm.tokenizer) for _ in self._echoes]

    def whole(self, choices: list[Choice], generation: Generation) -> dict[str, Any]:
        """The answer in one piece."""
        wire = [
            {
                "index": index,
                "text": self._echoes[index] + choice.text,
                "logprobs": self._logprobs[index].push(choice.logprobs) if self._logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "choices": wire, "usage": generation.usage.to_wire()}

    async def events(self, generation: Generation, *, with_usage: bool) -> AsyncGenerator[bytes]:
        """The answer as server-sent events, the terminal one included."""
        event = EventText(self._head, with_usage=with_usage)
        async for index, delta in generation.deltas():
            text = self._event(event, index, delta)
            if text:
                yield text.encode()
        if with_usage:
            yield event.usage(generation.usage.to_wire()).encode()
        yield DONE

    def _event(self, event: EventText, index: int, delta: TokenDelta) -> str:
        text, self._echoes[index] = self._echoes[index] + delta.text, ""
        if not text and not delta.logprobs and delta.finish_reason is None:
            return ""
        logprobs = self._logprobs[index].push(delta.logprobs) if self._logprobs else None
        content = '"text":' + json.dumps(text, ensure_ascii=False)
        return event.choice(index, content, logprobs=logprobs, finish_reason=delta.finish_reason)
