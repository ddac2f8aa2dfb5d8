"""What the Ollama dialect's requests look like on the wire. Fields that are not named have no effect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

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


class Options(Wire):
    """How tokens are chosen."""

    num_predict: int | None = None  # below 0: to the end
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
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
    arguments: dict[str, Any] = Field(default_factory=dict)


class ToolCall(Wire):
    """A call that an earlier answer made."""

    function: CalledFunction


class Message(Wire):
    """One message of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: Annotated[list[ToolCall], FirstError()] | None = None
    tool_name: str | None = None  # of a tool's message: the tool whose call it answers


class Function(Wire):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Wire):
    """A tool."""

    type: Literal["function"] = "function"
    function: Function


class ChatRequest(Common):
    """The body of `POST /api/chat`."""

    messages: Annotated[list[Message], FirstError()] = Field(default_factory=list[Message])
    tools: Annotated[list[Tool], FirstError()] | None = None


class GenerateRequest(Common):
    """The body of `POST /api/generate`."""

    prompt: str = ""
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
    truncate: bool | None = None  # cut what is too long; None: refuse it
    dimensions: int | None = None
    keep_alive: KeepAlive = None


class EmbeddingsRequest(Wire):
    """The body of `POST /api/embeddings`, the older form."""

    model: str
    prompt: str
    keep_alive: KeepAlive = None
