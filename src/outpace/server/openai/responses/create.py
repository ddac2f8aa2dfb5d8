"""From a request for a response to its running generation, whether it came as a body or as a message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from outpace.errors import InvalidParameterError
from outpace.server.constraint import compiled_grammar
from outpace.server.conversation import (
    Conversation,
    Prompt,
    answer_params,
    answer_reader,
    encode_conversation,
)
from outpace.server.errors import CONTEXT_LENGTH, APIError, from_exception, unsupported
from outpace.server.generation import Generation
from outpace.server.lanes import lane_of
from outpace.server.openai.responses.answer import ResponseAnswer
from outpace.server.openai.responses.conversation import conversation_of, read_items
from outpace.server.openai.responses.input_items import with_items_found
from outpace.server.openai.responses.items import as_message
from outpace.server.openai.responses.schema import CountRequest, ResponseRequest
from outpace.server.openai.responses.store import StoredResponse
from outpace.server.openai.responses.tools import ShownTools
from outpace.server.served import ServedModel
from outpace.types import DraftHints, SamplingParams

_RENAMED = {"max_tokens": "max_output_tokens", "messages": "input"}
"""The engine's names for parameters that the wire spells differently."""

Keep = Callable[[dict[str, Any], list[dict[str, Any]], ResponseRequest], None]
"""Takes a response, the messages up to its end, and its request."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a client's responses are kept: what `find` knows, requests may go on from."""

    scope: str  # the client's
    find: Callable[[str], StoredResponse | None]
    find_item: Callable[[str], dict[str, Any] | None]
    keep: Keep


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A request as the model is given it."""

    body: ResponseRequest  # with all items in its input
    tools: ShownTools
    messages: list[dict[str, Any]]  # without the instructions
    conversation: Conversation
    prompt: Prompt  # without tokens where there is nothing to read yet


class ContextExceededError(APIError):
    """A prompt that is longer than the context. `events`: what a stream says instead of an answer."""

    def __init__(self, error: APIError, events: str) -> None:
        super().__init__(error.status, error.message, type=error.type, param=error.param, code=error.code)
        self.events = events


def _check_features(body: ResponseRequest) -> None:
    """Raise `APIError` for what would change the answer and is not served."""
    if body.background:
        raise unsupported("background", "'background' is not supported; wait for the answer or stream it")
    if body.conversation is not None:
        message = "'conversation' is not supported; send its items, or go on by 'previous_response_id'"
        raise unsupported("conversation", message)
    if body.prompt is not None:
        message = (
            "'prompt' is not supported: none are stored here; send its text as 'instructions' or 'input'"
        )
        raise unsupported("prompt", message)


async def read_request(
    served: ServedModel, name: str, body: ResponseRequest, memory: Memory, num_chars: int
) -> ReadRequest:
    """Make the prompt of a request whose JSON has `num_chars` characters; `name` is the model's.

    Raises `APIError`.
    """
    _check_features(body)
    earlier: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        earlier = found(memory, body.previous_response_id, "previous_response_id").messages
    body = with_items_found(body, memory.find_item)
    tools = ShownTools(body.tools or ())
    messages = read_items(body, earlier, tools)
    conversation = conversation_of(body, messages, tools)
    read = ReadRequest(body, tools, messages, conversation, Prompt("", []))
    is_count = isinstance(body, CountRequest)
    try:
        prompt = await served.encode(
            num_chars, lambda: encode_conversation(served, conversation, is_count=is_count)
        )
    except Exception as error:
        # Templates may refuse a conversation in which nobody has spoken. Then there is nothing to read yet.
        if messages or body.wants_answer or not isinstance(error, InvalidParameterError):
            raise _refusal(served, name, read, memory, error) from error
        return read
    return replace(read, prompt=prompt)


async def start_response(
    served: ServedModel,
    name: str,
    body: ResponseRequest,
    memory: Memory,
    num_chars: int,
    deadline: float = 0.0,
) -> tuple[ResponseAnswer, Generation]:
    """Start the answer to a request whose JSON has `num_chars` characters; `name` is the model's.

    The answer is kept once it is whole. `deadline`: see `DraftHints`. Raises `APIError`.
    """
    read = await read_request(served, name, body, memory, num_chars)
    return _answer(served, name, read, memory), await _start(served, name, read, memory, deadline)


async def warm_up(
    served: ServedModel,
    name: str,
    body: ResponseRequest,
    memory: Memory,
    num_chars: int,
    deadline: float = 0.0,
) -> tuple[ResponseAnswer, Generation | None]:
    """As `start_response`, for a prompt that is only to be read; without a generation if it is empty."""
    read = await read_request(served, name, body, memory, num_chars)
    answer = _answer(served, name, read, memory)
    if not read.prompt.token_ids:
        return answer, None
    return answer, await _start(served, name, read, memory, deadline)


def _answer(served: ServedModel, name: str, read: ReadRequest, memory: Memory) -> ResponseAnswer:
    def on_end(response: dict[str, Any]) -> None:
        said = [as_message(response["output"], read.tools)] if response["output"] else []
        memory.keep(response, [*read.messages, *said], read.body)

    reader = answer_reader(served, read.conversation, read.prompt)
    return ResponseAnswer(name, read.body, served, read.tools, reader, on_end)


async def _start(
    served: ServedModel, name: str, read: ReadRequest, memory: Memory, deadline: float
) -> Generation:
    body = read.body
    try:
        grammar = await compiled_grammar(served, read.conversation, read.prompt)
        sampling = _params(body, served.settings.sampling)
        params = answer_params(served, read.conversation, sampling, grammar)
        hints = DraftHints(memory.scope, lane=lane_of(body.service_tier), deadline=deadline)
        return await served.start([read.prompt.token_ids], params, hints)
    except Exception as error:
        raise _refusal(served, name, read, memory, error) from error


def _refusal(served: ServedModel, name: str, read: ReadRequest, memory: Memory, error: Exception) -> APIError:
    said = from_exception(error, _RENAMED)
    if said.code != CONTEXT_LENGTH:
        return said
    return ContextExceededError(said, _answer(served, name, read, memory).refused(said))


def found(memory: Memory, response_id: str, param: str) -> StoredResponse:
    """A stored response. Raises `APIError`, which names `param`: 404, or 400 for one to go on from."""
    stored = memory.find(response_id)
    if stored is None:
        message = (
            f"no response {response_id[:80]!r} is stored here; it may have been dropped, or 'store' was false"
        )
        if param == "previous_response_id":
            raise APIError(400, message, param=param, code="previous_response_not_found")
        raise APIError(404, message, param=param, code="response_not_found")
    return stored


def _params(body: ResponseRequest, defaults: Mapping[str, float]) -> SamplingParams:
    given: dict[str, Any] = {**defaults, **body.said("temperature", "top_p")}
    max_tokens = body.max_output_tokens if body.wants_answer else 1
    return SamplingParams(max_tokens=max_tokens, **given)
