"""The application: routes, doors and errors put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from outpace import __version__
from outpace.engine.prometheus import registry_of
from outpace.llm import LLM
from outpace.server import dialect, errors
from outpace.server.anthropic.routes import anthropic_router
from outpace.server.encoding import json_response
from outpace.server.key_ring import KeyRing
from outpace.server.llama_cpp.infill import infill_router
from outpace.server.metrics import HTTPMetrics
from outpace.server.middleware import KeyAuth, LimitHeaders, LoopbackOnly
from outpace.server.model_entry import ModelSource
from outpace.server.model_pool import ModelPool
from outpace.server.models import models_router
from outpace.server.ollama.embed import embed_router
from outpace.server.ollama.routes import ollama_router
from outpace.server.openai.responses.routes import responses_router
from outpace.server.openai.routes import openai_router
from outpace.server.openapi import OPENAI_ERRORS, described
from outpace.server.settings import ServerSettings
from outpace.server.tracing import TraceContext, Tracing

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig

_NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI would send spans, metrics and logs of its own, by variables that are meant for `tracing`."""


def create_app(
    llm: LLM,
    *,
    model_name: str | None = None,
    settings: ServerSettings | None = None,
    tracing: Tracing | None = None,
    others: Sequence[ModelSource] = (),
    unloads: bool = False,
) -> FastAPI:
    """The application over `llm`, which the caller closes, and `others`, which requests load.

    `model_name` is the model's id on the wire; by default it follows from what was loaded. `unloads`: it may
    be unloaded and loaded again. The `ModelPool` is kept as `app.state.models`, to be closed at the end.
    """
    settings = settings or ServerSettings()
    models = ModelPool(llm, model_name, settings, tracing, others=others, unloads=unloads)
    http_registry = CollectorRegistry()
    engine_registry = registry_of(models.engine_metrics)
    middleware = [Middleware(dialect.RequestIDs), Middleware(HTTPMetrics, registry=http_registry)]
    if tracing is not None:
        middleware.append(Middleware(TraceContext))
    if settings.is_loopback:
        middleware.append(Middleware(LoopbackOnly, origins=settings.cors_origins))
    if settings.cors_origins:  # before the keys, which preflights do not carry
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "request-id", "retry-after"],
            )
        )
    if settings.has_keys:
        middleware.append(Middleware(KeyAuth, keys=KeyRing(settings)))
    middleware.append(Middleware(LimitHeaders, limits=models.limits))
    # No interactive pages: they load scripts from elsewhere.
    app = FastAPI(
        title="Outpace",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        middleware=middleware,
        telemetry=_NO_TELEMETRY,
        responses=OPENAI_ERRORS,
    )
    app.state.models = models
    dialect.install(app)
    routers = (
        openai_router, responses_router, anthropic_router, models_router, ollama_router, embed_router,
        infill_router,
    )  # fmt: skip
    for router in routers:
        app.include_router(router(models))

    @app.head("/", include_in_schema=False)
    @app.get("/", openapi_extra=described("server", "version"))
    async def root() -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Tell a client that probes the address that somebody is there."""
        return json_response({"server": "outpace", "version": __version__})

    @app.get("/health", openapi_extra=described("status", "model"))
    async def health() -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """200 while requests are served; 503 during shutdown and where the engine's thread is gone."""
        if models.live.draining:
            raise errors.APIError(503, "shutting down", type=errors.SERVER_ERROR, code="shutting_down")
        if not all(served.llm.loop.is_running for served in models.served):
            raise errors.APIError(
                503, "the engine is not running", type=errors.SERVER_ERROR, code="engine_dead"
            )
        return json_response(
            {"status": "ok", "model": models.first.name, "loaded": [served.name for served in models.served]}
        )

    page = {"200": {"description": "The page", "content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", openapi_extra={"responses": page}, response_class=Response)
    async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Metrics in Prometheus' text format."""
        text = generate_latest(engine_registry) + generate_latest(http_registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return app
