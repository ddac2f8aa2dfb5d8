"""What the Ollama dialect's requests look like on the wire. Fields that are not named have no effect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema

from outpace.server.keep_alive import parse_keep_alive
from outpace.server.wire import FirstError, Wire


def _keep_alive(value: object) -> float | None:
    return None if value is None else parse_keep_alive(value)


KeepAlive = Annotated[
    float | None,
    BeforeValidator(_keep_alive),
    WithJsonSchema({"type": ["number", "string", "null"]}),
]
"""How long the model stays in memory afterwards: seconds, or "5m"; 0: not at all; below 0: for ever."""


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int | None, BeforeValidator(_whole), WithJsonSchema({"type": ["integer", "null"]})]
"""A whole number, which may be written with a point, as Ollama takes it."""


class Options(Wire):
    """How tokens are chosen."""

    num_predict: Whole = None  # below 0: to the end
    temperature: float | None = None
    top_k: Whole = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Whole = None
    stop: list[str] | str | None = None


class Common(Wire):
    """The fields that both kinds of generation share."""

    model: str
    stream: bool | None = None  # None: yes
    format: str | dict[str, Any] | None = None  # "json", or a JSON schema
    options: Options | None = None
    deadline_ms: float | None = None  # from the request's arrival on; then the answer ends as it is
    keep_alive: KeepAlive = None
    think: bool | str | None = None  # whether the model thinks, perhaps how much; None: as it likes


class CalledFunction(Wire):
    """Which function a call is of, and its arguments."""

    name: str
    arguments: dict[str, Any] | None = None


class ToolCall(Wire):
    """A call that an earlier answer made."""

    id: str | None = None
    function: CalledFunction


class Message(Wire):
    """One message of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: Annotated[list[ToolCall], FirstError()] | None = None
    tool_name: str | None = None  # of a tool's message: the tool whose call it answers
    tool_call_id: str | None = None  # or the call itself


class Function(Wire):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Wire):
    """A tool; there are no others than functions."""

    function: Function


class ChatRequest(Common):
    """The body of `POST /api/chat`."""

    messages: Annotated[list[Message], FirstError()] | None = None
    tools: Annotated[list[Tool], FirstError()] | None = None


class GenerateRequest(Common):
    """The body of `POST /api/generate`."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None


class ShowRequest(Wire):
    """The body of `POST /api/show`."""

    model: str | None = None
    name: str | None = None  # an older name of the same


class EmbedRequest(Wire):
    """The body of `POST /api/embed`."""

    model: str
    input: str | Annotated[list[str], FirstError()]
    truncate: bool | None = None  # false: refuse what is too long, instead of cutting it
    dimensions: int | None = None
    keep_alive: KeepAlive = None


class EmbeddingsRequest(Wire):
    """The body of `POST /api/embeddings`, the older form."""

    model: str
    prompt: str
    keep_alive: KeepAlive = None
