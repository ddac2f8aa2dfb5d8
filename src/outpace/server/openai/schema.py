"""What the OpenAI dialect's requests look like on the wire.

Types are strict: `"1"` is no number. Ranges are the engine's business (`engine.sampling.validate`),
except where the wire is narrower. Fields that are not named here are let through and have no
effect; fields that ask for what Outpace does not do are named, so that the answer can say so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from outpace.server.wire import FirstError, Wire


class TextPart(Wire):
    """One part of a message's content. Only text is supported, but other types get a clear refusal."""

    type: str
    text: str | None = None


class CalledFunction(Wire):
    """Which function a call is of, and its arguments as JSON text."""

    name: str
    arguments: str = ""


class ToolCall(Wire):
    """A call that an earlier answer made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Wire):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], FirstError()] | None = None
    tool_calls: Annotated[list[ToolCall], FirstError()] | None = None
    tool_call_id: str | None = None  # of a tool's message: the call that it answers
    reasoning_content: str | None = None
    function_call: Any = None


class Function(Wire):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # the arguments must be what the schema says


class Tool(Wire):
    """A tool. Types other than functions get a clear refusal."""

    type: str
    function: Function | None = None


class NamedFunction(Wire):
    """The function that must be called."""

    name: str


class NamedTool(Wire):
    """A tool by its name."""

    type: str
    function: NamedFunction | None = None


class AllowedTools(Wire):
    """The tools that may be called, or of which one must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], FirstError()]


class ToolChoice(NamedTool):
    """The tool that must be called, or those that are allowed."""

    allowed_tools: AllowedTools | None = None


class Prediction(Wire):
    """What the answer is expected to resemble."""

    type: Literal["content"]
    content: str | Annotated[list[TextPart], FirstError()]


class JSONSchema(Wire):
    """A schema that the answer must fit."""

    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    """What the answer must look like."""

    type: str
    json_schema: JSONSchema | None = None


class StructuredOutputs(Wire):
    """What the answer must look like, as vLLM's users say it: one of these."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")  # a schema, or its text
    regex: str | None = None  # what matches it as a whole, of Rust's kind
    choice: Annotated[list[str], FirstError(), Field(min_length=1)] | None = None
    grammar: str | None = None  # of Lark's kind as llguidance reads it, or GBNF
    json_object: bool | None = None  # any object


class StreamOptions(Wire):
    """How a stream reports."""

    include_usage: bool | None = None


class SamplingFields(Wire):
    """The fields that chat and text completions share; None means the default."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    service_tier: str | None = None
    deadline_ms: float | None = None  # from the request's arrival on; then the answer ends as it is


class ChatRequest(SamplingFields):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], FirstError(), Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: Annotated[list[Tool], FirstError()] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    prediction: Prediction | None = None


class CompletionRequest(SamplingFields):
    """The body of `POST /v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], FirstError()]
        | Annotated[list[int], FirstError()]
        | Annotated[list[Annotated[list[int], FirstError()]], FirstError()]
    )
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class EmbeddingRequest(Wire):
    """The body of `POST /v1/embeddings`."""

    model: str | None = None
    input: (
        str
        | Annotated[list[str], FirstError()]
        | Annotated[list[int], FirstError()]
        | Annotated[list[Annotated[list[int], FirstError()]], FirstError()]
    )
    encoding_format: Literal["float", "base64"] | None = None  # None: float
    dimensions: int | None = None  # None: all
