"""`bench record`: a proxy that passes on what clients and a server say, and keeps a trace of it.

Bytes pass as they come, both ways; a client that leaves takes its request with it. Of an answer only what
counts its tokens is looked at, and nothing of it is kept. A trace that can't be written (a full disk) is told
of and holds nobody up.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from outpace.bench.dialects import WRONG_FORM, Dialect, Said, dialect_of
from outpace.bench.trace import KEPT_HEADERS, Exchange, last_end, to_line
from outpace.errors import OutpaceError, UsageError

if TYPE_CHECKING:
    import h11
    import httpx

__all__ = ["Recorder"]

MAX_BODY = 64 << 20
"""Bytes of a request; more is refused with 413."""
_MAX_READ = 4 << 20  # bytes of a whole answer that are kept until it can be read, and of a stream's line
_CHUNK = 65536
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade".split()
)
_WRITTEN_ANEW = _HOP_BY_HOP | {b"host", b"content-length", b"expect"}  # of a request


class Recorder:
    """Listens on `host`, `port` (0: any free one), and sends on to `upstream`, an address without a path.

    `say` is told what goes wrong, once each.
    Raises `UsageError` for what is no address, or where httpx is missing.
    """

    def __init__(
        self, upstream: str, path: Path, *, host: str = "127.0.0.1", port: int = 0, say: Callable[[str], None]
    ) -> None:
        parts = urlsplit(upstream)
        if (
            parts.scheme not in {"http", "https"}
            or not parts.hostname
            or parts.path.strip("/") not in {"", "v1"}
        ):
            raise UsageError(f"{upstream!r} is no address of a server; write one like http://127.0.0.1:8000")
        self._upstream = f"{parts.scheme}://{parts.netloc}"
        self._host, self._port = host, port
        self._trace = _Trace(path, say)
        self._say = say
        self._began = time.perf_counter() - last_end(path)  # what there is already goes on
        self.num_exchanges = 0

    async def run(self, on_ready: Callable[[str], None]) -> None:
        """Record until cancelled. Raises `OutpaceError` where it can't listen."""
        try:
            import httpx
        except ImportError:
            raise UsageError("bench record needs httpx: pip install 'outpace[bench]'") from None
        pool = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        # No proxy from the environment, and no limit of time: those are the client's.
        async with httpx.AsyncClient(
            base_url=self._upstream, timeout=httpx.Timeout(None), limits=pool, trust_env=False
        ) as client:
            connections: set[asyncio.Task[None]] = set()

            async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = asyncio.current_task()
                assert task is not None
                connections.add(task)
                try:
                    with suppress(ConnectionError):
                        await _Connection(reader, writer, client, self._record).serve()
                finally:
                    connections.discard(task)
                    writer.close()

            try:
                server = await asyncio.start_server(connected, self._host, self._port)
            except OSError as error:
                where = f"{self._host}, port {self._port}"
                raise OutpaceError(f"can't listen on {where}: {error.strerror or error}") from None
            async with server:
                port = server.sockets[0].getsockname()[1]
                on_ready(f"http://{self._host}:{port}")
                try:
                    await server.serve_forever()
                finally:
                    for task in list(connections):
                        task.cancel()
                    await asyncio.gather(*connections, return_exceptions=True)

    def _record(self, exchange: Exchange, start: float) -> None:
        exchange.start = start - self._began
        exchange.end = time.perf_counter() - self._began
        self.num_exchanges += 1
        self._trace.write(exchange)


class _Trace:
    """The file. A line is written in one piece, so that a kill leaves half a line at most."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}") from None
        self._say = say
        self._broken = os.fstat(self._file).st_size > 0  # what was there may end in half a line
        self._failing = False

    def write(self, exchange: Exchange) -> None:
        try:
            text = to_line(exchange)
        except RecursionError:  # nested deeper than can be written
            exchange.body = None
            text = to_line(exchange)
        line = (text + "\n").encode("utf-8", "replace")
        try:
            data = b"\n" + line if self._broken else line
            self._broken = os.write(self._file, data) < len(data)
            self._failing &= self._broken
            problem = "no space is left"
        except OSError as error:
            self._broken, problem = True, error.strerror or str(error)
        if self._broken and not self._failing:
            self._failing = True
            self._say(f"the trace has a gap: {problem}")


class _Connection:
    """One client's connection: its requests, one after the other."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        client: httpx.AsyncClient,
        record: Callable[[Exchange, float], None],
    ) -> None:
        import h11

        self._reader, self._writer = reader, writer
        self._client = client
        self._record = record
        self._http = h11.Connection(h11.SERVER)
        self._left = False

    async def serve(self) -> None:
        """Until the client leaves or says something that is no HTTP."""
        import h11

        while True:
            try:
                request = await self._event()
                if not isinstance(request, h11.Request):
                    return None
                body = await self._body()
                if body is None:
                    return await self._answer(413, b"the request is too long")
                if any(name.lower() == b"upgrade" for name, _ in request.headers):
                    return await self._answer(501, b"websockets are not recorded; ask over HTTP")
                # A whole address is what clients send to a proxy that they know of.
                if not request.target.startswith(b"/"):
                    return await self._answer(400, b"ask for a path of this server")
                await self._exchange(request, body)
            except h11.RemoteProtocolError:
                return None
            if self._left or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return None
            self._http.start_next_cycle()

    async def _event(self) -> Any:
        import h11

        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            data = await self._reader.read(_CHUNK)
            self._left |= not data
            self._http.receive_data(data)
        return event

    async def _body(self) -> bytes | None:
        """A request's body; None for one that is too long."""
        import h11

        body = bytearray()
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise h11.RemoteProtocolError("the request ends in the midst of its body")
            body += event.data
            if len(body) > MAX_BODY:
                return None
        return bytes(body)

    async def _exchange(self, request: h11.Request, body: bytes) -> None:
        start = time.perf_counter()
        exchange = _begun(request, body)
        leaves = asyncio.create_task(self._reader.read(1))  # nothing comes before the answer, or the end
        passes = asyncio.create_task(self._pass_on(request, body, exchange, start))
        try:
            await asyncio.wait({leaves, passes}, return_when=asyncio.FIRST_COMPLETED)
            if not passes.done():
                early = leaves.result() if leaves.exception() is None else b""
                if early:  # the next request, sent before this one's answer
                    self._http.receive_data(early)
                    await asyncio.wait({passes})
                else:
                    self._left = True
        finally:
            for task in (leaves, passes):
                task.cancel()
            ended = await asyncio.gather(leaves, passes, return_exceptions=True)
            if isinstance(ended[0], bytes) and ended[0] and passes.done() and not self._left:
                with suppress(Exception):  # read together with the answer's end
                    self._http.receive_data(ended[0])
            self._left |= isinstance(ended[1], ConnectionError)
            self._record(exchange, start)
        if isinstance(ended[1], Exception) and not isinstance(ended[1], ConnectionError):
            raise ended[1]

    async def _pass_on(self, request: h11.Request, body: bytes, exchange: Exchange, start: float) -> None:
        import h11
        import httpx

        headers = [(name, value) for name, value in request.headers if name.lower() not in _WRITTEN_ANEW]
        # Not the client's `build_request`, which would add headers of its own.
        # The target as it is, since a path that begins with // must not name another server.
        url = self._client.base_url.copy_with(raw_path=request.target)
        sent = httpx.Request(request.method.decode(), url, headers=headers, content=body)
        try:
            answer = await self._client.send(sent, stream=True)
        except httpx.HTTPError as error:
            message = f"{self._client.base_url}: {error or type(error).__name__}"
            exchange.cut = False
            return await self._answer(502, message.encode())
        try:
            exchange.status, exchange.first_byte = answer.status_code, time.perf_counter() - start
            kept = [(name, value) for name, value in answer.headers.raw if name.lower() not in _HOP_BY_HOP]
            await self._send(h11.Response(status_code=answer.status_code, headers=kept))
            counter = _Counter(exchange, answer.headers, start)
            async with aclosing(_raw(answer)) as pieces:
                async for piece in pieces:
                    counter.take(piece)  # first: some clients leave as soon as they have the last event
                    await self._send(h11.Data(piece))
            counter.finish()
            await self._send(h11.EndOfMessage())
        except httpx.HTTPError:  # the server broke off: so does the proxy
            self._left = True
        finally:
            await answer.aclose()

    async def _answer(self, status: int, text: bytes) -> None:
        import h11

        headers = [
            ("content-type", "text/plain"),
            ("content-length", str(len(text))),
            ("connection", "close"),
        ]
        await self._send(h11.Response(status_code=status, headers=headers))
        await self._send(h11.Data(text))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: Any) -> None:
        if data := cast("bytes", self._http.send(event)):
            self._writer.write(data)
            await self._writer.drain()


async def _raw(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    async for piece in answer.aiter_raw():
        if piece:
            yield piece


def _begun(request: h11.Request, body: bytes) -> Exchange:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in request.headers}
    try:
        said = json.loads(body) if body else None
    except (ValueError, RecursionError):  # no JSON, or nested too deeply for it
        said = None
    kept = {name: value for name, value in headers.items() if name in KEPT_HEADERS}
    # Without the query, in which some clients send their key.
    method, path = request.method.decode("latin-1"), request.target.decode("latin-1").split("?", 1)[0]
    return Exchange(start=0.0, method=method, path=path, headers=kept, body=said, cut=True)  # until it ends


class _Counter:
    """Reads of an answer what counts its tokens, as its bytes pass."""

    def __init__(self, exchange: Exchange, headers: httpx.Headers, start: float) -> None:
        self._exchange = exchange
        self._start = start
        plain = headers.get("content-encoding", "identity") == "identity"
        self._dialect: Dialect | None = dialect_of(exchange.path) if plain else None
        self._streams = "json" not in headers.get("content-type", "") or "ndjson" in headers["content-type"]
        self._held = b""

    def take(self, data: bytes) -> None:
        """More bytes."""
        if self._dialect is None:
            return
        self._held += data
        if self._streams:
            *lines, self._held = self._held.split(b"\n")
            for line in lines:
                self._read(line)
        if len(self._held) > _MAX_READ:
            self._dialect, self._held = None, b""

    def finish(self) -> None:
        """The answer is whole."""
        self._exchange.cut = False
        self._read(self._held)

    def _read(self, line: bytes) -> None:
        if self._dialect is None:
            return
        with suppress(*WRONG_FORM):
            if said := self._dialect.read_line(line.decode().strip()):
                self._note(said)

    def _note(self, said: Said) -> None:
        exchange = self._exchange
        if said.end:
            exchange.cut = False
        if said.piece and exchange.first_piece is None:
            exchange.first_piece = time.perf_counter() - self._start
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
            if (count := getattr(said, name)) is not None:
                setattr(exchange, name, count)
