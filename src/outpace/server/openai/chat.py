"""`POST /v1/chat/completions`."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from outpace.server.body import read_json
from outpace.server.client import client_scope
from outpace.server.encoding import json_response
from outpace.server.errors import from_exception
from outpace.server.generation import Generation
from outpace.server.openai.choices import Choice, collect
from outpace.server.openai.events import EventText
from outpace.server.openai.logprobs import chat_logprobs
from outpace.server.openai.params import chat_messages, chat_params
from outpace.server.openai.prediction import encode_prediction, predicted_text
from outpace.server.openai.schema import ChatRequest
from outpace.server.served import ServedModel
from outpace.server.sse import DONE, EventStream
from outpace.types import DraftHints, TokenDelta


async def create_chat_completion(served: ServedModel, request: Request) -> Response:
    """Answer a conversation, in one piece or as a stream. Raises `APIError`."""
    body = await read_json(request, ChatRequest, served.settings)
    name = served.resolve_name(body.model)
    messages, wire, predicted = chat_messages(body), chat_params(body), predicted_text(body)
    num_chars = sum(len(message["content"]) for message in messages) + len(predicted)

    def encode() -> tuple[list[int], list[int]]:
        return served.llm.encode_chat(messages), encode_prediction(served, predicted)

    try:
        prompt, prediction = await served.encode(num_chars, encode)
        hints = DraftHints(client_scope(request.headers), prediction)
        generation = served.start([prompt], wire.params, hints)
    except Exception as error:
        raise from_exception(error, wire.renamed) from error
    answer = ChatAnswer(
        served, name, f"chatcmpl-{uuid.uuid4().hex}", with_logprobs=wire.params.logprobs is not None
    )
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(answer.events(generation, with_usage=with_usage), generation)
    async with generation.cancelled_on_disconnect(request.receive):
        choices = await collect(generation)
    return json_response(answer.whole(choices, generation))


class ChatAnswer:
    """Writes one answer in the chat format. `name` is the model's, as the answer shows it."""

    def __init__(self, served: ServedModel, name: str, answer_id: str, *, with_logprobs: bool) -> None:
        self._served = served
        self._name = name
        self._id = answer_id
        self._with_logprobs = with_logprobs

    def whole(self, choices: list[Choice], generation: Generation) -> dict[str, Any]:
        """The answer in one piece."""
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._served.created_now(),
            "model": self._name,
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": chat_logprobs(self._served.llm.tokenizer, choice.logprobs)
                    if self._with_logprobs
                    else None,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(choices)
            ],
            "usage": generation.usage.to_wire(),
        }

    async def events(self, generation: Generation, *, with_usage: bool) -> AsyncGenerator[bytes]:
        """The answer as server-sent events, the terminal one included."""
        head = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._served.created_now(),
            "model": self._name,
        }
        event = EventText(head, with_usage=with_usage)
        started: set[int] = set()
        async for index, delta in generation.deltas():
            text = ""
            if index not in started:
                started.add(index)
                text = event.choice(index, '"delta":{"role":"assistant","content":""}')
            text += self._content(event, index, delta)
            if delta.finish_reason is not None:
                text += event.choice(index, '"delta":{}', finish_reason=delta.finish_reason)
            if text:
                yield text.encode()
        if with_usage:
            yield event.usage(generation.usage.to_wire()).encode()
        yield DONE

    def _content(self, event: EventText, index: int, delta: TokenDelta) -> str:
        """The delta's text as an event; nothing while a character or a stop string is incomplete."""
        if not delta.text and not delta.logprobs:
            return ""
        content = '"delta":{"content":' + json.dumps(delta.text, ensure_ascii=False) + "}"
        if not self._with_logprobs:
            return event.choice(index, content)
        logprobs = chat_logprobs(self._served.llm.tokenizer, delta.logprobs)
        return event.choice(index, content, logprobs=logprobs)
