"""`POST /v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from outpace.server.anthropic.answer import MessageAnswer
from outpace.server.anthropic.conversation import cache_seconds, read_conversation
from outpace.server.anthropic.errors import error_body
from outpace.server.anthropic.events import PING
from outpace.server.anthropic.params import explain, message_params
from outpace.server.anthropic.schema import CountRequest, MessageRequest
from outpace.server.body import read_json
from outpace.server.client import client_scope
from outpace.server.constraint import compiled_grammar
from outpace.server.conversation import (
    Conversation,
    Prompt,
    answer_params,
    answer_reader,
    encode_conversation,
)
from outpace.server.deadlines import deadline_of
from outpace.server.encoding import json_response
from outpace.server.errors import APIError
from outpace.server.model_pool import ModelPool
from outpace.server.served import ServedModel
from outpace.server.sse import EventStream
from outpace.types import DraftHints, Lane


async def create_message(models: ModelPool, request: Request, request_id: str) -> Response:
    """Answer a conversation, in one piece or as a stream. Raises `APIError`."""
    body = await read_json(request, MessageRequest, models.settings)
    deadline = deadline_of(request, body.deadline_ms)
    async with models.lease(body.model, deadline=deadline) as (served, name):
        return await _answer(served, name, request, body, request_id, deadline)


async def _answer(
    served: ServedModel, name: str, request: Request, body: MessageRequest, request_id: str, deadline: float
) -> Response:
    conversation = read_conversation(body)
    prompt = await _encode(served, request, conversation)
    lane: Lane = "priority" if body.speed == "fast" else "default"
    hints = DraftHints(client_scope(request), pin_seconds=cache_seconds(body), lane=lane, deadline=deadline)
    try:
        grammar = await compiled_grammar(served, conversation, prompt)
        params = answer_params(served, conversation, message_params(body, served.settings.sampling), grammar)
        generation = await served.start([prompt.token_ids], params, hints)
    except Exception as error:
        raise explain(error) from error
    answer = MessageAnswer(name, body, served, answer_reader(served, conversation, prompt))
    if body.stream:
        encode_error = partial(_error_event, request_id)
        silence = served.settings.heartbeat
        return EventStream(answer.events(generation), generation, silence, encode_error, PING.encode)
    async with generation.cancelled_on_disconnect(request.receive):
        return json_response(await answer.whole(generation))


async def count_tokens(models: ModelPool, request: Request) -> Response:
    """Count the tokens of a prompt. Raises `APIError`."""
    body = await read_json(request, CountRequest, models.settings)
    async with models.lease(body.model, deadline=deadline_of(request, None)) as (served, _):
        prompt = await _encode(served, request, read_conversation(body), is_count=True)
    return json_response({"input_tokens": len(prompt.token_ids)})


async def _encode(
    served: ServedModel, request: Request, conversation: Conversation, *, is_count: bool = False
) -> Prompt:
    # The body's length is as good a measure of the work as the texts in it. Without one it came in chunks.
    num_chars = int(request.headers.get("content-length", served.settings.max_body_bytes))
    try:
        return await served.encode(
            num_chars, lambda: encode_conversation(served, conversation, is_count=is_count)
        )
    except Exception as error:
        raise explain(error) from error


def _error_event(request_id: str, error: APIError) -> str:
    return f"event: error\ndata: {error_body(error, request_id)}\n\n"
