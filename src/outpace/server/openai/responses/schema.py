"""What requests for responses look like on the wire. Fields that are not named here have no effect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from outpace.server.wire import FirstError, Wire


class Echoed(Wire):
    """What the answer shows as it was sent, the fields that are not named here included."""

    model_config = ConfigDict(extra="allow")


class Part(Echoed):
    """One part of a content: text of some kind."""

    type: str
    text: str | None = None


class Item(Echoed):
    """One item of the input. Which fields count depends on its kind."""

    type: str | None = None
    role: str | None = None  # of a message
    content: str | Annotated[list[Part], FirstError()] | None = None  # also of reasoning
    id: str | None = None
    call_id: str | None = None  # of a call and of its output
    name: str | None = None  # of a call
    namespace: str | None = None  # of a call: that of its tool
    arguments: str | None = None  # of a function's call, JSON text
    input: str | None = None  # of a custom tool's call
    encrypted_content: str | None = None  # of reasoning, as `summary`
    summary: Annotated[list[Part], FirstError()] | None = None
    output: str | Annotated[list[Part], FirstError()] | None = None

    @property
    def kind(self) -> str:
        """Its type. Without one an item is a message, or a reference to another where it has an id alone."""
        is_message = self.id is None or self.role is not None or self.content is not None
        return self.type or ("message" if is_message else "item_reference")


class TextFormat(Echoed):
    """What a custom tool's text must look like: any text, or one of a grammar."""

    type: str
    syntax: str | None = None  # of a grammar: lark or regex
    definition: str | None = None


class ClientTool(Echoed):
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


class NamedTool(Echoed):
    """A tool by its name."""

    type: str
    name: str | None = None
    namespace: str | None = None


class ToolChoice(NamedTool):
    """The tool that must be called, or those that are allowed (type allowed_tools)."""

    mode: Literal["auto", "required"] | None = None  # None: auto
    tools: Annotated[list[NamedTool], FirstError()] | None = None


class Format(Echoed):
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
    include: list[str] | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    truncation: str | None = None
    reasoning: dict[str, Any] | None = None
    service_tier: str | None = None
    deadline_ms: float | None = None  # from the request's arrival on; then the answer ends as it is

    @property
    def wants_answer(self) -> bool:
        """Whether there is to be an answer; else the prompt is all."""
        return True


class CountRequest(ResponseRequest):
    """The body of `POST /v1/responses/input_tokens`: a request for a response that is only to be counted."""

    input: str | Annotated[list[Item], FirstError()] = Field(default_factory=list[Item])

    @property
    def wants_answer(self) -> bool:
        """Whether there is to be an answer; else the prompt is all."""
        return False


class CreateMessage(ResponseRequest):
    """A message of the websocket: a request for a response."""

    type: Literal["response.create"]
    generate: bool | None = None  # false: read the prompt into the cache, and answer nothing

    @property
    def wants_answer(self) -> bool:
        """Whether there is to be an answer; else the prompt is all."""
        return self.generate is not False
