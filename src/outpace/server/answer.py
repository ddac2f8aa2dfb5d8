"""Answers as both dialects read them: pieces of text, thoughts and calls, and how each choice ends."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, cast

from outpace.server.encoding import to_json
from outpace.server.generation import Generation
from outpace.text.tool_calls.parser import AnswerParser
from outpace.text.tool_calls.pieces import CallArguments, CallBegin, CallEnd, Piece, Text
from outpace.text.tool_calls.sink import load
from outpace.text.tool_calls.thought_tokens import ThoughtTokens
from outpace.types import FinishReason, TokenDelta

EndReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a delta of a choice brought."""

    index: int  # the choice's
    delta: TokenDelta
    pieces: list[Piece]
    end: EndReason | None  # with the choice's last


@dataclass(slots=True)
class Call:
    """A call of a tool, as far as it came."""

    name: str
    arguments: str  # JSON text, as the model wrote it


async def read_answer(
    generation: Generation,
    new_parser: Callable[[], AnswerParser | None],
    new_count: Callable[[], ThoughtTokens | None],
    *,
    parallel: bool,
) -> AsyncIterator[Progress]:
    """Read all choices as they come; each has exactly one end. Raises `APIError` where one fails.

    Without `parallel` a choice ends with its first call. Whoever reads this then releases the generation.
    The tokens of thoughts are counted in its usage.
    """
    parsers = [new_parser() for _ in range(generation.num_choices)]
    counts = [new_count() for _ in range(generation.num_choices)]
    running = set(range(generation.num_choices))
    async with aclosing(generation.deltas()) as deltas:
        async for index, delta in deltas:
            if index not in running:
                continue
            count = counts[index]
            if count is not None:
                generation.usage.reasoning_tokens[index] = count.push(delta.token_ids)
            progress = _read(index, delta, parsers[index], parallel=parallel)
            if progress.end is not None:
                running.remove(index)
            yield progress
            if not running:
                return


def _read(index: int, delta: TokenDelta, parser: AnswerParser | None, *, parallel: bool) -> Progress:
    end: EndReason | None = None
    if delta.finish_reason is not None:
        end = "length" if delta.finish_reason is FinishReason.LENGTH else "stop"
    if parser is None:
        return Progress(index, delta, [Text(delta.text)] if delta.text else [], end)
    pieces = parser.push(delta.text) if delta.text else []
    if end is not None:
        pieces += parser.finish()
    if not parallel and parser.num_calls:
        pieces = pieces[: pieces.index(CallEnd()) + 1]
        end = "tool_calls"
    if end == "stop" and parser.num_begun and delta.stop is None:
        end = "tool_calls"
    return Progress(index, delta, pieces, end)


def calls_in(pieces: Iterable[Piece]) -> list[Call]:
    """The calls among an answer's pieces."""
    calls: list[Call] = []
    for piece in pieces:
        match piece:
            case CallBegin(name):
                calls.append(Call(name, ""))
            case CallArguments(text):
                calls[-1].arguments += text
            case _:
                pass
    return calls


def new_call_id(prefix: str, *, short: bool) -> str:
    """An id for a call: `prefix` and 24 hexadecimal digits; `short`: nine digits and nothing else."""
    digits = uuid.uuid4().hex
    return digits[:9] if short else prefix + digits[:24]


def call_input(arguments: str) -> dict[str, Any]:
    """A call's arguments as the object that some wires want; what is no JSON object is put into one."""
    try:
        value = load(arguments)
        to_json(value).encode()  # also no lone surrogates
    except ValueError:
        value = None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {"INVALID_JSON": arguments}
