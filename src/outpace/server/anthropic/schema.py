"""What the Anthropic dialect's requests look like on the wire.

As in the other dialect, types are strict, ranges are the engine's business, and fields that are not named
here are let through without effect. `cache_control` may be on anything; it is a wish that the prefix cache
fulfils in any case, so only its presence and its `ttl` are read: for that long the prompt leaves memory last.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from outpace.server.wire import FirstError, Wire


class SourcePart(Wire):
    """One block of a document's content."""

    type: str
    text: str | None = None


class Source(Wire):
    """Where a document's content is."""

    type: str
    data: str | None = None
    content: str | Annotated[list[SourcePart], FirstError()] | None = None  # of type content


class TextBlock(Wire):
    """A block that is text, or can stand for one. Which fields count depends on its type."""

    type: str
    text: str | None = None
    tool_name: str | None = None  # of a tool_reference
    source: Source | str | None = None  # of a document or a search_result
    title: str | None = None  # of both
    cache_control: Any = None


class ResultPart(TextBlock):
    """One block of a tool's result, or of the system prompt."""

    content: str | Annotated[list[TextBlock], FirstError()] | None = None  # of a search_result


class Block(TextBlock):
    """One block of a message's content."""

    id: str | None = None  # of a tool_use
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None  # of a tool_result
    content: str | Annotated[list[ResultPart], FirstError()] | None = None  # also of a search_result
    is_error: bool | None = None
    thinking: str | None = None  # of a thinking block


class Message(Wire):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], FirstError()]


class Tool(Wire):
    """A tool that the model may call. A `type` other than custom is a tool of the API's own."""

    type: str | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None  # the input must be what the schema says
    cache_control: Any = None


class ToolChoice(Wire):
    """Whether and what the model must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None  # with "tool"
    disable_parallel_tool_use: bool | None = None


class Thinking(Wire):
    """Whether the model may think aloud before it answers. Budgets are no limit here: `max_tokens` is."""

    type: str
    display: str | None = None


class OutputFormat(Wire):
    """The form of the answer."""

    type: str
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class OutputConfig(Wire):
    """What the answer shall be like."""

    format: OutputFormat | None = None


class CountRequest(Wire):
    """The body of `POST /v1/messages/count_tokens`: what the prompt is made of."""

    model: str
    messages: Annotated[list[Message], FirstError(), Field(min_length=1)]
    system: str | Annotated[list[ResultPart], FirstError()] | None = None
    tools: Annotated[list[Tool], FirstError()] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # an older place of the same
    cache_control: Any = None


class MessageRequest(CountRequest):
    """The body of `POST /v1/messages`."""

    max_tokens: int  # 0: read the prompt into the cache, and answer nothing
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    speed: Literal["standard", "fast"] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    deadline_ms: float | None = None  # from the request's arrival on; then the answer ends as it is
