"""The engine requests behind one HTTP request, as one stream that ends exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    MutableMapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from outpace.engine.loop import RequestStream
from outpace.engine.output import join_deltas
from outpace.server.deadlines import deadline_exceeded
from outpace.server.errors import SERVER_ERROR, APIError
from outpace.server.prediction_match import PredictionMatch
from outpace.server.tracing import GenerationSpan
from outpace.types import FinishReason, TokenDelta

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class LiveGenerations:
    """The generations that run now, so that a shutdown can end them.

    Attributes: `draining`, no more of them may begin; `num_turns`, answers on connections that outlive them.
    """

    def __init__(self) -> None:
        self.draining = False
        self.num_turns = 0
        self._live: set[Generation] = set()

    def __len__(self) -> int:
        """How many run."""
        return len(self._live)

    def drain(self) -> None:
        """Let no new generation in."""
        self.draining = True

    def cancel_all(self) -> None:
        """Cancel what still runs."""
        for generation in list(self._live):
            generation.cancel()

    @contextmanager
    def turn(self) -> Generator[None]:
        """While inside, a connection that waits for its client's next request owes the end of an answer."""
        self.num_turns += 1
        try:
            yield
        finally:
            self.num_turns -= 1

    def add(self, generation: Generation) -> None:
        """A generation starts."""
        self._live.add(generation)

    def discard(self, generation: Generation) -> None:
        """A generation has ended. Safe to call twice."""
        self._live.discard(generation)


@dataclass(slots=True)
class Usage:
    """Tokens in and out of one HTTP request, counted as the deltas pass."""

    prompt_tokens: list[int]  # [num_prompts]
    cached_tokens: list[int]  # [num_prompts] of those, found in the prefix cache
    completion_tokens: dict[int, int] = field(default_factory=dict[int, int])  # choice -> tokens
    reasoning_tokens: dict[int, int] = field(default_factory=dict[int, int])  # choice -> of those, thoughts
    prediction: Sequence[int] = ()  # what the client expects
    matches: dict[int, PredictionMatch] = field(default_factory=dict[int, PredictionMatch])  # by choice

    def to_wire(self) -> dict[str, Any]:
        """The `usage` object of an answer."""
        prompt, completion = sum(self.prompt_tokens), sum(self.completion_tokens.values())
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached_tokens)},
        }
        details = {"reasoning_tokens": self.num_reasoning_tokens}
        if self.prediction:
            accepted = sum(match.num_accepted for match in self.matches.values())
            details |= {
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": len(self.matches) * len(self.prediction) - accepted,
            }
        usage["completion_tokens_details"] = details
        return usage

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of thoughts, of all choices."""
        return sum(self.reasoning_tokens.values())

    @property
    def num_computed_tokens(self) -> int:
        """Tokens that had to be computed: those of the prompts that no cache had, and the answers'."""
        prompt = sum(self.prompt_tokens) - sum(self.cached_tokens)
        return prompt + sum(self.completion_tokens.values())

    def count(self, prompt: int, index: int, delta: TokenDelta) -> None:
        """A delta of a prompt's choice passes; `index` is the choice's over all prompts."""
        self.prompt_tokens[prompt] = delta.num_prompt_tokens
        self.cached_tokens[prompt] = delta.num_cached_tokens
        self.completion_tokens[index] = delta.num_output_tokens
        if self.prediction:
            if index not in self.matches:
                self.matches[index] = PredictionMatch(self.prediction)
            self.matches[index].add(delta.token_ids)


class Generation:
    """One or more prompts with the same number of choices each, merged into one stream of deltas.

    Whatever happens, `release` must be called at the end; it gives the engine's memory back, and tells
    `on_end` once. After `timeout` seconds, if not 0, the generation is cancelled. What comes within
    `interval` seconds is one delta.
    """

    def __init__(
        self,
        streams: Sequence[RequestStream],
        num_choices: int,
        live: LiveGenerations,
        *,
        prediction: Sequence[int] = (),
        span: GenerationSpan | None = None,
        timeout: float = 0.0,
        interval: float = 0.0,
        on_end: Callable[[Usage], None] | None = None,
    ) -> None:
        self._streams = streams
        self._num_choices = num_choices
        self._live = live
        self._span = span
        self._disconnected = self._expired = False
        self._on_end = on_end
        self._interval = interval
        self._timer = asyncio.get_running_loop().call_later(timeout, self._expire) if timeout else None
        self.usage = Usage(
            [stream.num_prompt_tokens for stream in streams],
            [0] * len(streams),
            prediction=prediction,
        )
        live.add(self)

    @property
    def num_choices(self) -> int:
        """Choices of all prompts together."""
        return len(self._streams) * self._num_choices

    def cancel(self) -> None:
        """End every request now. `deltas` then raises. Safe to call at any time, and twice."""
        for stream in self._streams:
            stream.cancel()

    def release(self) -> None:
        """The answer is out, or nobody wants it: cancel what still runs and forget the rest."""
        self.cancel()
        self._live.discard(self)
        if self._span is not None:
            self._span.end(self.usage)
        if self._timer is not None:
            self._timer.cancel()
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self.usage)

    def _expire(self) -> None:
        self._expired = True
        self.cancel()

    async def deltas(self) -> AsyncGenerator[tuple[int, TokenDelta]]:
        """The deltas as they come, each with its choice's index over all prompts.

        Ends when every choice has its finish reason. Raises `APIError` as soon as one fails or is
        cancelled.
        """
        usage = self.usage
        async for prompt, delta in self._merged():
            index = prompt * self._num_choices + delta.index
            usage.count(prompt, index, delta)
            if self._span is not None:
                self._span.count(index, delta)
            if delta.finish_reason is not None and delta.finish_reason.is_failure:
                error = self._failure(delta)
                if self._span is not None:
                    self._span.fail(error)
                raise error
            yield index, delta

    def _failure(self, delta: TokenDelta) -> APIError:
        if delta.finish_reason is FinishReason.ERROR:
            message = delta.error or "the engine failed"
            return APIError(500, message, type=SERVER_ERROR, code="engine_error")
        if delta.finish_reason is FinishReason.TIMEOUT:
            return deadline_exceeded(delta.error or "it has passed")
        if self._expired:
            message = "the answer took longer than this server's limit (--request-timeout)"
            return APIError(408, message, type=SERVER_ERROR, code="timeout")
        if self._disconnected:
            return APIError(499, "the client closed the connection", code="client_disconnected")
        return APIError(503, "the server is shutting down", type=SERVER_ERROR, code="shutting_down")

    async def _merged(self) -> AsyncIterator[tuple[int, TokenDelta]]:
        if len(self._streams) == 1:
            async with aclosing(self._streams[0].batches(self._interval)) as batches:
                async for batch in batches:
                    for delta in join_deltas(batch):
                        yield 0, delta
            return
        queue: asyncio.Queue[tuple[int, TokenDelta | None]] = asyncio.Queue()

        async def pump(prompt: int, stream: RequestStream) -> None:
            try:
                async for batch in stream.batches(self._interval):
                    for delta in join_deltas(batch):
                        queue.put_nowait((prompt, delta))
            finally:
                queue.put_nowait((prompt, None))

        tasks = [asyncio.create_task(pump(prompt, stream)) for prompt, stream in enumerate(self._streams)]
        try:
            running = len(tasks)
            while running:
                prompt, delta = await queue.get()
                if delta is None:
                    running -= 1
                else:
                    yield prompt, delta
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @asynccontextmanager
    async def cancelled_on_disconnect(self, receive: Receive) -> AsyncGenerator[None]:
        """While inside: when the client closes its connection, cancel at once. Releases at the end."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._disconnected = True
            self.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            self.release()
            watcher.cancel()
