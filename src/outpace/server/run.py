"""Listening, serving and stopping."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from outpace.errors import OutpaceError, PortInUseError, UsageError
from outpace.llm import LLM
from outpace.server.app import create_app
from outpace.server.model_entry import ModelSource
from outpace.server.model_pool import ModelPool
from outpace.server.settings import ServerSettings
from outpace.server.slow_heads import protocol_with
from outpace.server.tracing import Tracing, configured_tracing

BACKLOG = 512
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open; agents pause between turns."""
LAST_WORDS = 2.0
"""Seconds that connections get to tell of answers that were cancelled at shutdown."""


def listen(settings: ServerSettings) -> socket.socket:
    """Take the port, before anything slow happens; connections wait until `serve` runs.

    Raises `PortInUseError`, `UsageError` for an unknown host, `OutpaceError` where binding is refused.
    """
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"--host {host}: no such host ({error})") from None
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    try:
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is in use; stop what listens there or choose another --port"
            raise PortInUseError(message) from None
        raise OutpaceError(f"can't listen on {host}, port {port}: {error.strerror or error}") from None
    # Accepted connections inherit it. asyncio sets it only on sockets made with IPPROTO_TCP by name, and
    # without it Nagle's algorithm and delayed acknowledgements hold events back for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """The address to tell the user, with the real port."""
    scheme = "https" if tls else "http"
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def serve(
    llm: LLM,
    settings: ServerSettings,
    listener: socket.socket,
    *,
    model_name: str | None = None,
    others: Sequence[ModelSource] = (),
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve `llm`, and `others` on demand, until SIGTERM or Ctrl-C, then end gracefully and return.

    `on_ready` is called with the model's name on the wire once requests are answered. A second signal ends
    at once.
    """
    tracing = configured_tracing()
    try:
        server = make_server(
            llm,
            settings,
            model_name=model_name,
            others=others,
            unloads=True,
            on_ready=on_ready,
            tracing=tracing,
        )
        try:
            server.run([listener])
        finally:
            server.models.close()
    finally:
        if tracing is not None:
            tracing.close()


def make_server(
    llm: LLM,
    settings: ServerSettings,
    *,
    model_name: str | None = None,
    on_ready: Callable[[str], None] = lambda _: None,
    tracing: Tracing | None = None,
    others: Sequence[ModelSource] = (),
    unloads: bool = False,
) -> GracefulServer:
    """The server, not yet running."""
    app = create_app(
        llm, model_name=model_name, settings=settings, tracing=tracing, others=others, unloads=unloads
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # would keep what users ask in the terminal's history
        server_header=False,
        lifespan="off",
        http=protocol_with(settings.head_timeout),
        ws="websockets-sansio",
        ws_max_size=settings.max_body_bytes,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_keep_alive=KEEP_ALIVE,
    )
    return GracefulServer(config, app.state.models, on_ready)


class GracefulServer(uvicorn.Server):
    """Gives running requests some seconds to finish, then ends each of them with an error event."""

    def __init__(self, config: uvicorn.Config, models: ModelPool, on_ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self.models = models
        self.on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell."""
        await super().startup(sockets)
        self.on_ready(self.models.first.name)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, wait, cancel."""
        self.models.live.drain()
        for server in self.servers:
            server.close()
        grace = self.models.settings.shutdown_grace
        timer = asyncio.get_running_loop().call_later(grace, self.models.live.cancel_all)
        end = time.monotonic() + grace + LAST_WORDS
        try:
            await self._turns_to_end(end)
            self.config.timeout_graceful_shutdown = math.ceil(max(1.0, end - time.monotonic()))
            await super().shutdown(sockets)
        finally:
            timer.cancel()
            self.models.live.cancel_all()
            for connection in list(self.server_state.connections):  # of clients who do not read
                connection.transport.abort()

    async def _turns_to_end(self, end: float) -> None:
        """Wait for answers on websockets, which uvicorn closes at once, at most until `end`."""
        while self.models.live.num_turns and not self.force_exit and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Stop at a signal; at the second one at once.

        Unlike uvicorn's own, it does not raise the signal again afterwards: the caller still has a
        model to close.
        """
        if self.should_exit:
            self.force_exit = True
            self.models.live.cancel_all()
        self.should_exit = True
