"""`POST /v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from outpace.server.anthropic.answer import MessageAnswer
from outpace.server.anthropic.conversation import Conversation, cache_seconds, read_conversation
from outpace.server.anthropic.errors import error_body
from outpace.server.anthropic.params import check_features, explain, message_params, shows_thinking
from outpace.server.anthropic.schema import CountRequest, MessageRequest
from outpace.server.body import read_json
from outpace.server.client import client_scope
from outpace.server.encoding import json_response
from outpace.server.errors import APIError
from outpace.server.served import ServedModel
from outpace.server.sse import EventStream
from outpace.types import DraftHints


async def create_message(served: ServedModel, request: Request, request_id: str) -> Response:
    """Answer a conversation, in one piece or as a stream. Raises `APIError`."""
    body = await read_json(request, MessageRequest, served.settings)
    name = served.resolve_name(body.model)
    params = message_params(body)
    prompt = await _encode(served, request, body)
    hints = DraftHints(client_scope(request.headers), pin_seconds=cache_seconds(body))
    try:
        generation = served.start([prompt], params, hints)
    except Exception as error:
        raise explain(error) from error
    answer = MessageAnswer(name, body, served)
    if body.stream:
        encode_error = partial(_error_event, request_id)
        return EventStream(answer.events(generation), generation, encode_error)
    async with generation.cancelled_on_disconnect(request.receive):
        return json_response(await answer.whole(generation))


async def count_tokens(served: ServedModel, request: Request) -> Response:
    """Count the tokens of a prompt. Raises `APIError`."""
    body = await read_json(request, CountRequest, served.settings)
    served.resolve_name(body.model)
    return json_response({"input_tokens": len(await _encode(served, request, body))})


async def _encode(served: ServedModel, request: Request, body: CountRequest) -> list[int]:
    """The prompt's token ids."""
    check_features(body)
    conversation = read_conversation(body)
    # The body's length is as good a measure of the work as the texts in it. Without one it came in chunks.
    num_chars = int(request.headers.get("content-length", served.settings.max_body_bytes))
    think = shows_thinking(body)
    try:
        return await served.encode(num_chars, lambda: _token_ids(served, conversation, think=think))
    except Exception as error:
        raise explain(error) from error


def _token_ids(served: ServedModel, conversation: Conversation, *, think: bool) -> list[int]:
    tokenizer = served.llm.tokenizer
    text = tokenizer.render_chat(conversation.messages, tools=conversation.tools, enable_thinking=think)
    return tokenizer.encode(text + conversation.prefill, add_special=False, parse_special=True)


def _error_event(request_id: str, error: APIError) -> str:
    return f"event: error\ndata: {error_body(error, request_id)}\n\n"
