"""Servers for the benchmarks' tests: ours without weights, and ones that say what they are told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from outpace.llm import LLM
from outpace.server.run import listen, make_server, url_of
from outpace.server.settings import ServerSettings


@contextmanager
def outpace_server(model: Path, *, api_key: str | None = None, max_context: int = 1024) -> Iterator[str]:
    """The address of a real server over the null backend."""
    settings = ServerSettings(port=0, shutdown_grace=0.2, api_key=api_key)
    ready = threading.Event()
    with (
        LLM(model, backend="null", max_context=max_context, kv_cache_bytes=1 << 28) as llm,
        listen(settings) as listener,
    ):
        server = make_server(llm, settings, on_ready=lambda _: ready.set())
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        assert ready.wait(60)
        yield url_of(listener)
        server.should_exit = True
        thread.join()


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server whose answers are `handler`'s."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
