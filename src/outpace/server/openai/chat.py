"""`POST /v1/chat/completions`."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from outpace.server.answer import EndReason, Progress, calls_in, new_call_id
from outpace.server.body import read_json
from outpace.server.client import client_scope
from outpace.server.constraint import compiled_grammar
from outpace.server.conversation import Prompt, answer_params, answer_reader, encode_conversation
from outpace.server.deadlines import deadline_of
from outpace.server.encoding import json_response, to_json
from outpace.server.errors import from_exception
from outpace.server.generation import Generation
from outpace.server.lanes import lane_of
from outpace.server.model_pool import ModelPool
from outpace.server.openai.conversation import read_conversation
from outpace.server.openai.events import EventText
from outpace.server.openai.logprobs import chat_logprobs
from outpace.server.openai.params import chat_params
from outpace.server.openai.prediction import encode_prediction, predicted_text
from outpace.server.openai.schema import ChatRequest
from outpace.server.served import ServedModel
from outpace.server.sse import DONE, EventStream
from outpace.text.tool_calls.pieces import CallArguments, CallBegin, CallEnd, Piece, Text, Thinking
from outpace.types import DraftHints, Lane, TokenLogprob


async def create_chat_completion(models: ModelPool, request: Request) -> Response:
    """Answer a conversation, in one piece or as a stream. Raises `APIError`."""
    body = await read_json(request, ChatRequest, models.settings)
    deadline = deadline_of(request, body.deadline_ms)
    async with models.lease(body.model, deadline=deadline) as (served, name):
        return await _answer(served, name, request, body, deadline)


async def _answer(
    served: ServedModel, name: str, request: Request, body: ChatRequest, deadline: float
) -> Response:
    wire = chat_params(body, served.settings.sampling)
    conversation, predicted = read_conversation(body), predicted_text(body)
    # The body's length is as good a measure of the work as the texts in it. Without one it came in chunks.
    num_chars = int(request.headers.get("content-length", served.settings.max_body_bytes))

    def encode() -> tuple[Prompt, list[int]]:
        return encode_conversation(served, conversation), encode_prediction(served, predicted)

    try:
        prompt, prediction = await served.encode(num_chars, encode)
        grammar = await compiled_grammar(served, conversation, prompt)
        params = answer_params(served, conversation, wire.params, grammar)
        hints = DraftHints(
            client_scope(request),
            prediction,
            lane=lane_of(body.service_tier),
            deadline=deadline,
        )
        generation = await served.start([prompt.token_ids], params, hints)
    except Exception as error:
        raise from_exception(error, wire.renamed) from error
    read = answer_reader(served, conversation, prompt)
    answer = ChatAnswer(served, name, read, hints.lane, with_logprobs=params.logprobs is not None)
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = answer.events(generation, with_usage=with_usage)
        return EventStream(events, generation, served.settings.heartbeat)
    async with generation.cancelled_on_disconnect(request.receive):
        return json_response(await answer.whole(generation))


@dataclass(slots=True)
class _Choice:
    """One choice in the making."""

    pieces: list[Piece] = field(default_factory=list[Piece])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    end: EndReason | None = None


class ChatAnswer:
    """Writes one answer in the chat format. `name` is the model's, as the answer shows it."""

    def __init__(
        self,
        served: ServedModel,
        name: str,
        read: Callable[[Generation], AsyncIterator[Progress]],
        lane: Lane,
        *,
        with_logprobs: bool,
    ) -> None:
        self._served = served
        self._read = read
        self._with_logprobs = with_logprobs
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": served.created_now(),
            "model": name,
            "service_tier": lane,
        }

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer in one piece. Raises `APIError` where it fails or the client leaves."""
        choices = [_Choice() for _ in range(generation.num_choices)]
        async for progress in self._read(generation):
            choice = choices[progress.index]
            choice.pieces += progress.pieces
            choice.logprobs += progress.delta.logprobs
            choice.end = progress.end or choice.end
        said = [
            {
                "index": index,
                "message": self._message(choice.pieces),
                "logprobs": self._logprobs(choice.logprobs),
                "finish_reason": choice.end,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "choices": said, "usage": generation.usage.to_wire()}

    def _message(self, pieces: list[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
        thoughts = "".join(piece.text for piece in pieces if isinstance(piece, Thinking))
        calls = [
            {"id": self._call_id(), "type": "function", "function": asdict(call)} for call in calls_in(pieces)
        ]
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if thoughts:
            message["reasoning_content"] = thoughts
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        return message

    async def events(self, generation: Generation, *, with_usage: bool) -> AsyncGenerator[bytes]:
        """The answer as server-sent events, the terminal one included."""
        head = {**self._head, "object": "chat.completion.chunk"}
        event = EventText(head, with_usage=with_usage)
        num_calls: dict[int, int] = {}  # by choice
        async for progress in self._read(generation):
            index = progress.index
            text = ""
            if index not in num_calls:
                num_calls[index] = 0
                text = event.choice(index, '"delta":{"role":"assistant","content":""}')
            text += self._deltas(event, progress, num_calls)
            if progress.end is not None:
                text += event.choice(index, '"delta":{}', finish_reason=progress.end)
            if text:
                yield text.encode()
        if with_usage:
            yield event.usage(generation.usage.to_wire()).encode()
        yield DONE

    def _deltas(self, event: EventText, progress: Progress, num_calls: dict[int, int]) -> str:
        """What came, as events; nothing while a character, a stop string or a mark is incomplete."""
        index = progress.index
        logprobs = self._logprobs(progress.delta.logprobs) if progress.delta.logprobs else None
        events: list[str] = []
        deltas = [self._delta(piece, index, num_calls) for piece in progress.pieces]
        for delta in filter(None, deltas or ['"content":""'] if logprobs else deltas):
            events.append(event.choice(index, f'"delta":{{{delta}}}', logprobs=logprobs))
            logprobs = None  # they are those of all that came
        return "".join(events)

    def _delta(self, piece: Piece, index: int, num_calls: dict[int, int]) -> str:
        """A piece as the fields of a delta."""
        match piece:
            case Text(text):
                return '"content":' + json.dumps(text, ensure_ascii=False)
            case Thinking(text):
                return '"reasoning_content":' + json.dumps(text, ensure_ascii=False)
            case CallBegin(name):
                call = {"index": num_calls[index], "id": self._call_id(), "type": "function"}
                num_calls[index] += 1
                return '"tool_calls":' + to_json([{**call, "function": {"name": name, "arguments": ""}}])
            case CallArguments(text):
                number = num_calls[index] - 1
                said = json.dumps(text, ensure_ascii=False)
                return f'"tool_calls":[{{"index":{number},"function":{{"arguments":{said}}}}}]'
            case CallEnd():
                return ""

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return chat_logprobs(self._served.llm.tokenizer, entries) if self._with_logprobs else None

    def _call_id(self) -> str:
        return new_call_id("call_", short=self._served.form.family.short_ids)
