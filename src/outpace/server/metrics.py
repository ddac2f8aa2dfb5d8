"""HTTP metrics."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outpace.engine.prometheus import PREFIX

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Seconds."""


class HTTPMetrics:
    """Counts and times requests (ASGI middleware). Paths are routes, so that their number is bounded."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        labels = ("method", "path", "status")
        self._requests = Counter(
            PREFIX + "http_requests", "HTTP requests answered.", labels, registry=registry
        )
        self._seconds = Histogram(
            PREFIX + "http_request_duration_seconds",
            "From a request's head to the last byte of its answer.",
            ("method", "path"),
            buckets=BUCKETS,
            registry=registry,
        )
        self._running = Gauge(PREFIX + "http_requests_in_progress", "HTTP requests now.", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application and count (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = time.perf_counter()
        self._running.inc()
        try:
            await self._app(scope, receive, observe)
        finally:
            self._running.dec()
            method, path = _labels(scope)
            self._requests.labels(method, path, str(status)).inc()
            self._seconds.labels(method, path).observe(time.perf_counter() - start)


def _labels(scope: Scope) -> tuple[str, str]:
    method = scope["method"] if scope["method"] in {"GET", "HEAD", "POST", "OPTIONS"} else "other"
    route = scope.get("route")
    return method, getattr(route, "path", "unmatched")
