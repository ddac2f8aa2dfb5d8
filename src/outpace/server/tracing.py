"""Traces: a span for each generation, by OpenTelemetry's conventions for generative AI.

Off unless OpenTelemetry's environment variables ask for it; its SDK and exporter (`outpace[otel]`) are needed
then, and not imported otherwise. A span has counts, times and parameters, never text of prompt or answer.
Names: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from outpace import __version__
from outpace.config import TracesSettings, traces_settings
from outpace.server.errors import APIError
from outpace.types import SamplingParams, TokenDelta

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

    from outpace.server.generation import Usage

_CHAT, _TEXT, _EMBED = "chat", "text_completion", "embeddings"
_OPERATIONS = {
    "/v1/completions": _TEXT,
    "/api/generate": _TEXT,
    "/infill": _TEXT,
    "/v1/embeddings": _EMBED,
    "/api/embed": _EMBED,
}
"""What an address does, as `gen_ai.operation.name`; the others chat."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Incoming:
    """The request, or the websocket, that is being answered."""

    path: str
    headers: Mapping[str, str]
    is_socket: bool
    request_id: str | None
    came_at: int  # Unix nanoseconds
    model: str | None = None  # as asked for


_incoming: ContextVar[_Incoming | None] = ContextVar("incoming", default=None)


def note_model(model: str | None) -> None:
    """A body was read, which asks for this model. Without traces this does nothing."""
    incoming = _incoming.get()
    if incoming is not None:
        incoming.model = model
        if incoming.is_socket:  # this message's time, not the connection's
            incoming.came_at = time.time_ns()


class TraceContext:
    """Keeps what a request's span needs of its head (ASGI middleware)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Keep it and pass on (ASGI)."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        token = _incoming.set(
            _Incoming(
                scope["path"],
                dict(Headers(scope=scope)),
                scope["type"] == "websocket",
                scope.get("state", {}).get("request_id"),
                time.time_ns(),
            )
        )
        try:
            await self._app(scope, receive, send)
        finally:
            _incoming.reset(token)


class Tracing:
    """Makes the spans, by a provider of OpenTelemetry's SDK."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("outpace", __version__)

    def begin(self, model: str, params: SamplingParams) -> GenerationSpan:
        """The span of a generation by `model`; it began when its request came."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        incoming = _incoming.get() or _Incoming("", {}, False, None, time.time_ns())
        asked = incoming.model or model
        operation = _OPERATIONS.get(incoming.path, _CHAT)
        attributes: dict[str, str | int | float] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "outpace",
            "gen_ai.request.model": asked,
            "gen_ai.response.model": model,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
        }
        if incoming.request_id is not None:
            attributes["outpace.request.id"] = incoming.request_id
        if params.max_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = params.max_tokens
        if params.n != 1:
            attributes["gen_ai.request.choice.count"] = params.n
        span = self._tracer.start_span(
            f"{operation} {asked}",
            extract(incoming.headers),
            SpanKind.SERVER,
            attributes,
            start_time=incoming.came_at,
        )
        return GenerationSpan(span, incoming.came_at)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class GenerationSpan:
    """One generation's span, from its request to its end."""

    def __init__(self, span: Span, came_at: int) -> None:
        self._span = span
        self._came_at = came_at
        self._is_first = True
        self._reasons: dict[int, str] = {}  # by choice

    def count(self, index: int, delta: TokenDelta) -> None:
        """A delta of a choice has come."""
        if self._is_first and delta.token_ids:
            self._is_first = False
            seconds = (time.time_ns() - self._came_at) / 1e9
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
        if delta.finish_reason is not None:
            self._reasons[index] = delta.finish_reason.value

    def fail(self, error: BaseException) -> None:
        """It was refused, failed or was given up. Messages are not told: they may quote the request."""
        from opentelemetry.trace import StatusCode

        code = error.code if isinstance(error, APIError) else None
        self._span.set_attribute("error.type", code or type(error).__name__)
        self._span.set_status(StatusCode.ERROR)

    def end(self, usage: Usage | None = None) -> None:
        """Nothing more comes. Safe to call twice: only the first call counts."""
        if not self._span.is_recording():
            return
        if usage is not None:
            self._span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": sum(usage.prompt_tokens),
                    "gen_ai.usage.cache_read.input_tokens": sum(usage.cached_tokens),
                    "gen_ai.usage.output_tokens": sum(usage.completion_tokens.values()),
                }
            )
        if self._reasons:
            reasons = [reason for _, reason in sorted(self._reasons.items())]
            self._span.set_attribute("gen_ai.response.finish_reasons", reasons)
        self._span.end()


def configured_tracing() -> Tracing | None:
    """What the environment asks for, None for no traces. Where that cannot be had, a warning says why."""
    settings = traces_settings()
    if settings is None:
        return None
    try:
        return Tracing(_provider(_exporter(settings)))
    except ImportError:
        logger.warning("no traces: OpenTelemetry is not installed; pip install 'outpace[otel]'")
    except ValueError as error:
        logger.warning("no traces: %s", error)
    return None


def _exporter(settings: TracesSettings) -> SpanExporter:
    match settings.exporter, settings.protocol:
        case "console", _:
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            return ConsoleSpanExporter()
        case "otlp", "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            return OTLPSpanExporter()
        case "otlp", protocol:
            raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported; http/protobuf is")
        case exporter, _:
            raise ValueError(f"OTEL_TRACES_EXPORTER={exporter} is not supported; otlp, console and none are")


def _provider(exporter: SpanExporter) -> TracerProvider:
    """The SDK reads its own variables: of the resource, the sampler, the limits and the batches."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "outpace"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
