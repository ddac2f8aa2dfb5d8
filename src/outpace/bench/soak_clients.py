"""What one client of `bench soak` does, and whether the server did right by it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from outpace.bench.answers import AnswerTiming, timed_answer
from outpace.bench.soak_requests import GoodRequest, draw_bad, draw_good, probes

if TYPE_CHECKING:
    import httpx

__all__ = ["LEFT", "OK", "REFUSED", "Clients"]

OK, LEFT, REFUSED = "ok", "left", "refused"
"""Outcomes that are none of the server's errors. REFUSED: 429, which asks to come later."""
_EARLY = 0.5  # seconds: clients that leave before their answer do so within these
_TOO_MANY = 429
_END = {"response.completed", "response.incomplete"}


class Clients:
    """Does one thing after another at a server, each drawn at random; several may use one."""

    def __init__(
        self, client: httpx.AsyncClient, url: str, model: str, *, max_body: int, max_context: int
    ) -> None:
        self._client = client
        self._url = url
        self._model = model
        self._max_body = max_body  # bytes; a longer request must be refused
        self._max_context = max_context
        self._probes = probes(model)
        self._answers: list[Any] = []
        self._actions: dict[str, tuple[float, Callable[[random.Random], Awaitable[str]]]] = {
            "answer": (6, self._answer),
            "leave mid-stream": (3, self._leave_mid_stream),
            "leave early": (3, self._leave_early),
            "bad request": (3, self._bad_request),
            "same answer": (2, self._same_answer),
            "websocket": (1, self._websocket),
            "half a request": (1, self._half_request),
            "embeddings": (1, self._embeddings),
            "look": (1, self._look),
        }

    async def prepare(self) -> None:
        """Ask the probes while nothing else goes on."""
        self._answers = [await self._ask(probe) for probe in self._probes]

    async def act(self, draw: random.Random) -> tuple[str, str]:
        """Do something: what it was, and its outcome (OK, LEFT, REFUSED, or what was wrong)."""
        import httpx

        weights = [weight for weight, _ in self._actions.values()]
        [name] = draw.choices(list(self._actions), weights)
        try:
            return name, await self._actions[name][1](draw)
        except httpx.HTTPError as error:
            return name, f"{type(error).__name__}: {error}"
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return name, f"the answer is not of the form that it should be: {type(error).__name__}: {error}"

    async def _answer(self, draw: random.Random) -> str:
        request = draw_good(draw, self._model)
        return _judge(request, await timed_answer(self._client, request.dialect, request.body))

    async def _leave_mid_stream(self, draw: random.Random) -> str:
        request = draw_good(draw, self._model)
        request.body["stream"] = True
        after = draw.choice([1, 2, 8, 20])
        timing = await timed_answer(self._client, request.dialect, request.body, leave_after=after)
        if not timing.error and not timing.num_ends and len(timing.events) >= after:
            return LEFT
        return _judge(request, timing)

    async def _leave_early(self, draw: random.Random) -> str:
        request = draw_good(draw, self._model)
        try:
            async with asyncio.timeout(_EARLY * draw.random()):
                timing = await timed_answer(self._client, request.dialect, request.body)
        except TimeoutError:
            return LEFT
        return _judge(request, timing)

    async def _bad_request(self, draw: random.Random) -> str:
        bad = draw_bad(draw, self._model, self._max_body, self._max_context)
        head = {"content-type": "application/json"}
        answer = await self._client.request(bad.method, bad.path, content=bad.content, headers=head)
        if answer.status_code in bad.statuses:
            return OK if _has_error(answer.text) else f"{bad.name}: {answer.status_code} without a message"
        return f"{bad.name} at {bad.path}: status {answer.status_code} instead of {bad.statuses[0]}"

    async def _same_answer(self, draw: random.Random) -> str:
        number = draw.randrange(len(self._probes))
        answer = await self._ask(self._probes[number])
        if isinstance(answer, int):
            return REFUSED if answer == _TOO_MANY else f"HTTP {answer}"
        return OK if answer == self._answers[number] else f"{self._probes[number].name}: another answer"

    async def _ask(self, probe: GoodRequest) -> Any:
        """The answer's choices, without ids that differ; the status where it is refused."""
        answer = await self._client.post(probe.dialect.path, json=probe.body)
        if answer.status_code != 200:
            return answer.status_code
        try:
            choices = answer.json()["choices"]
            for choice in choices:
                for call in choice["message"].get("tool_calls") or ():
                    del call["id"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return "not the dialect's form"
        return choices

    async def _websocket(self, draw: random.Random) -> str:
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        url = f"ws{self._url.removeprefix('http')}/v1/responses"
        leave_after = draw.choice([None, 0, 1, 6])
        try:
            async with connect(url, proxy=None, open_timeout=None, close_timeout=1.0) as socket:
                for turn in range(draw.randrange(1, 3)):
                    body = {
                        "type": "response.create",
                        "model": self._model,
                        "input": f"Hello {draw.random()}",
                    }
                    await socket.send(json.dumps({**body, "max_output_tokens": draw.randrange(16, 40)}))
                    count, kind = 0, ""
                    while kind not in _END:
                        if turn == 0 and count == leave_after:
                            return LEFT
                        event = json.loads(await socket.recv())
                        kind, count = event["type"], count + 1
                        if kind in {"error", "response.failed"}:
                            return REFUSED if event.get("status") == _TOO_MANY else f"{kind}: {event}"[:300]
        except (WebSocketException, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return OK

    async def _half_request(self, draw: random.Random) -> str:
        """A part of a request's bytes, and then nothing more."""
        request = draw_good(draw, self._model)
        content = json.dumps(request.body)
        head = f"POST {request.dialect.path} HTTP/1.1\r\nHost: soak\r\nContent-Length: {len(content)}\r\n\r\n"
        text = head + content
        address = urlsplit(self._url)
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(text[: draw.randrange(len(text))].encode())
        with suppress(OSError):
            await writer.drain()
            await asyncio.sleep(draw.choice([0.0, 0.2]))
            writer.close()
            await writer.wait_closed()
        return LEFT

    async def _embeddings(self, draw: random.Random) -> str:
        texts = [f"{draw.random()} " * draw.randrange(1, 8) for _ in range(draw.randrange(1, 4))]
        answer = await self._client.post("/v1/embeddings", json={"model": self._model, "input": texts})
        if answer.status_code != 200:
            return REFUSED if answer.status_code == _TOO_MANY else f"HTTP {answer.status_code}"
        return OK if len(answer.json()["data"]) == len(texts) else "not as many embeddings as texts"

    async def _look(self, draw: random.Random) -> str:
        path = draw.choice(["/health", "/metrics", "/v1/models", "/api/tags", "/openapi.json"])
        answer = await self._client.get(path)
        return OK if answer.status_code == 200 else f"{path}: HTTP {answer.status_code}"


def _judge(request: GoodRequest, timing: AnswerTiming) -> str:
    """OK, or what is wrong with an answer that was read to its end."""
    if timing.status == _TOO_MANY:
        return REFUSED
    wrong = timing.error
    if not wrong and timing.num_finished != request.num_choices:
        wrong = f"{timing.num_finished} choices ended instead of {request.num_choices}"
    if not wrong and request.body["stream"] and (timing.num_ends != 1 or timing.num_after_end):
        wrong = f"{timing.num_ends} terminal events, {timing.num_after_end} events after the first"
    how = "stream" if request.body["stream"] else "whole"
    return f"{request.name}, {how}: {wrong}" if wrong else OK


def _has_error(text: str) -> bool:
    try:
        return bool(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return False
