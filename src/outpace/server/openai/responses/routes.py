"""`POST /v1/responses`, and what was stored of them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from outpace.server.body import read_json
from outpace.server.client import client_scope
from outpace.server.constraint import compiled_grammar
from outpace.server.conversation import answer_params, answer_reader, encode_conversation
from outpace.server.encoding import json_response
from outpace.server.errors import APIError, from_exception, unsupported
from outpace.server.openai.responses.answer import ResponseAnswer
from outpace.server.openai.responses.conversation import conversation_of, read_items
from outpace.server.openai.responses.items import as_message
from outpace.server.openai.responses.schema import ResponseRequest
from outpace.server.openai.responses.store import ResponseStore, StoredResponse
from outpace.server.openapi import body_of
from outpace.server.served import ServedModel
from outpace.server.sse import EventStream
from outpace.types import DraftHints, SamplingParams

_RENAMED = {"max_tokens": "max_output_tokens", "messages": "input"}
"""The engine's names for parameters that the wire spells differently."""


def responses_router(served: ServedModel) -> APIRouter:
    """The routes over `served`."""
    router = APIRouter(prefix="/v1/responses")
    store = ResponseStore()

    @router.post("", openapi_extra=body_of(ResponseRequest), response_class=Response)
    async def create(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Answer; a stream of server-sent events with `stream`."""
        return await _create(served, store, request)

    @router.get("/{response_id}")
    async def get(response_id: str, request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """A stored response."""
        return json_response(_stored(store, response_id, request, "response_id").response)

    @router.delete("/{response_id}")
    async def remove(response_id: str, request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Forget a stored response."""
        _stored(store, response_id, request, "response_id")
        store.remove(response_id, client_scope(request))
        return {"id": response_id, "object": "response", "deleted": True}

    return router


async def _create(served: ServedModel, store: ResponseStore, request: Request) -> Response:
    body = await read_json(request, ResponseRequest, served.settings)
    name = served.resolve_name(body.model)
    if body.background:
        raise unsupported("background", "'background' is not supported; wait for the answer or stream it")
    earlier: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        earlier = _stored(store, body.previous_response_id, request, "previous_response_id").messages
    messages = read_items(body, earlier)
    conversation = conversation_of(body, messages)
    # The body's length is as good a measure of the work as the texts in it. Without one it came in chunks.
    num_chars = int(request.headers.get("content-length", served.settings.max_body_bytes))
    scope = client_scope(request)
    try:
        prompt = await served.encode(num_chars, lambda: encode_conversation(served, conversation))
        grammar = await compiled_grammar(served, conversation, prompt)
        params = answer_params(served, conversation, _params(body), grammar)
        generation = await served.start([prompt.token_ids], params, DraftHints(scope))
    except Exception as error:
        raise from_exception(error, _RENAMED) from error

    def on_end(response: dict[str, Any]) -> None:
        if body.store is not False:
            store.put(response, [*messages, as_message(response["output"])], scope)

    answer = ResponseAnswer(name, body, served, answer_reader(served, conversation, prompt), on_end)
    if body.stream:
        return EventStream(answer.events(generation), generation, answer.failed)
    async with generation.cancelled_on_disconnect(request.receive):
        return json_response(await answer.whole(generation))


def _params(body: ResponseRequest) -> SamplingParams:
    given: dict[str, Any] = {
        name: value for name in ("temperature", "top_p") if (value := getattr(body, name)) is not None
    }
    return SamplingParams(max_tokens=body.max_output_tokens, **given)


def _stored(store: ResponseStore, response_id: str, request: Request, param: str) -> StoredResponse:
    found = store.get(response_id, client_scope(request))
    if found is None:
        message = (
            f"no response {response_id[:80]!r} is stored here; it may have been dropped, or 'store' was false"
        )
        raise APIError(404, message, param=param, code="response_not_found")
    return found
