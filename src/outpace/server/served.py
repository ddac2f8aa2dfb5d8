"""The model that the server serves: what every dialect needs of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from outpace.engine.loop import RequestStream
from outpace.llm import LLM
from outpace.server.errors import SERVER_ERROR, APIError
from outpace.server.generation import Generation, LiveGenerations, Usage
from outpace.server.limits import ClientLimits
from outpace.server.settings import ServerSettings
from outpace.server.tracing import Tracing
from outpace.text.grammar import GrammarCompiler
from outpace.text.tool_calls.form import AnswerForm
from outpace.types import DraftHints, SamplingParams

T = TypeVar("T")

INLINE_CHARS = 8192
"""Prompts up to this length are encoded on the event loop (well under 1 ms); longer ones on a thread."""


class ServedModel:
    """An `LLM` under its name on the wire.

    Attributes: `llm`; `name`, the model's id on the wire; `settings`; `live` and `limits`, the generations
    and the clients of the whole server; `form`, how the model writes calls and thoughts. `on_start` and
    `on_end` are called for each generation.
    """

    def __init__(
        self,
        llm: LLM,
        name: str,
        settings: ServerSettings,
        live: LiveGenerations,
        limits: ClientLimits,
        tracing: Tracing | None,
        *,
        on_start: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.llm = llm
        self.name = name
        self.settings = settings
        self.live = live
        self.limits = limits
        self.form = AnswerForm.of(llm.tokenizer)
        self._tracing = tracing
        self._on_start, self._on_end = on_start, on_end

    @property
    def max_context(self) -> int:
        """Tokens that prompt and answer may have together, as configured."""
        return self.llm.footprint.max_context

    @property
    def grammars(self) -> GrammarCompiler:
        """What compiles grammars for the model's vocabulary; any thread may use it."""
        return self.llm.loop.engine.grammars

    @staticmethod
    def created_now() -> int:
        """An answer's `created`, Unix seconds."""
        return int(time.time())

    async def encode(self, num_chars: int, encode: Callable[[], T]) -> T:
        """Run `encode`, which tokenizes about `num_chars`, without holding up the other streams."""
        if num_chars <= INLINE_CHARS:
            return encode()
        return await asyncio.to_thread(encode)

    async def start(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, hints: DraftHints
    ) -> Generation:
        """Submit one request for each prompt; all of them or none. `hints` are those of each.

        Raises what `EngineLoop.submit` raises, and `APIError`: 503 during shutdown, 429
        over the client's limits.
        """
        span = None if self._tracing is None else self._tracing.begin(self.name, params)
        try:
            streams = await self._submit(prompts, params, hints)
        except BaseException as error:
            if span is not None:
                span.fail(error)
                span.end()
            raise
        self._on_start()

        def ended(usage: Usage) -> None:
            self.limits.ended(hints.scope, usage.num_computed_tokens)
            self._on_end()

        return Generation(
            streams,
            params.n,
            self.live,
            prediction=hints.prediction,
            span=span,
            timeout=self.settings.request_timeout,
            interval=self.settings.stream_interval,
            on_end=ended,
        )

    async def _submit(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, hints: DraftHints
    ) -> list[RequestStream]:
        if params.grammar is not None:
            # Compiled on a thread, so that no stream waits for it; afterwards it is known.
            await asyncio.to_thread(self.grammars.start, params.grammar)
        if self.live.draining:
            message = "the server is shutting down"
            raise APIError(
                503, message, type=SERVER_ERROR, code="shutting_down", headers={"retry-after": "5"}
            )
        self.limits.admit(hints.scope)
        streams: list[RequestStream] = []
        try:
            for prompt in prompts:
                streams.append(self.llm.loop.submit(prompt, params, hints=hints))
        except BaseException:
            for stream in streams:
                stream.cancel()
            self.limits.ended(hints.scope, 0)
            raise
        return streams


def short_name(model: str) -> str:
    """A model's id on the wire: the file's name without its ending for a path, else the name as given."""
    path = Path(model)
    return path.name.removesuffix(".gguf") if path.exists() else model
