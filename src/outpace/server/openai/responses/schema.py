"""What requests for responses look like on the wire. Fields that are not named here have no effect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from outpace.server.wire import FirstError, Wire


class Part(Wire):
    """One part of a content: text of some kind."""

    type: str
    text: str | None = None


class Item(Wire):
    """One item of the input. Which fields count depends on its type."""

    type: str = "message"
    role: str | None = None  # of a message
    content: str | Annotated[list[Part], FirstError()] | None = None  # also of reasoning
    id: str | None = None
    call_id: str | None = None  # of a call and of its output
    name: str | None = None  # of a call
    namespace: str | None = None  # of a call: that of its tool
    arguments: str | None = None  # of a function's call, JSON text
    input: str | None = None  # of a custom tool's call
    output: str | Annotated[list[Part], FirstError()] | None = None


class TextFormat(Wire):
    """What a custom tool's text must look like: any text, or one of a grammar."""

    type: str
    syntax: str | None = None  # of a grammar: lark or regex
    definition: str | None = None


class ClientTool(Wire):
    """A function (`parameters` is a schema), or a custom tool that takes text."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: TextFormat | None = None  # of a custom tool's text


class Tool(ClientTool):
    """A tool that the client runs, a namespace of such, or a service of the API's own."""

    tools: Annotated[list[ClientTool], FirstError()] | None = None  # of a namespace


class ToolChoice(Wire):
    """The tool that must be called."""

    type: str
    name: str | None = None
    namespace: str | None = None


class Format(Wire):
    """What the answer's text must look like."""

    type: str
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(Wire):
    """How the answer's text is to be."""

    format: Format | None = None


class ResponseRequest(Wire):
    """The body of `POST /v1/responses`."""

    model: str | None = None
    input: str | Annotated[list[Item], FirstError()]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None  # None: yes
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: Annotated[list[Tool], FirstError()] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    metadata: dict[str, Any] | None = None
    background: bool | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    deadline_ms: float | None = None  # from the request's arrival on; then the answer ends as it is


class CreateMessage(ResponseRequest):
    """A message of the websocket: a request for a response."""

    type: Literal["response.create"]
    generate: bool | None = None  # false: read the prompt into the cache, and answer nothing
