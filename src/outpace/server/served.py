"""The model that the server serves: what every dialect needs of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from outpace.engine.loop import RequestStream
from outpace.errors import UsageError
from outpace.llm import LLM
from outpace.server.errors import SERVER_ERROR, APIError
from outpace.server.generation import Generation, LiveGenerations
from outpace.server.key_ring import KeyRing
from outpace.server.limits import ClientLimits
from outpace.server.settings import ServerSettings
from outpace.server.tracing import Tracing
from outpace.text.grammar import GrammarCompiler
from outpace.text.tool_calls.form import AnswerForm
from outpace.types import DraftHints, SamplingParams

T = TypeVar("T")

FOREIGN_NAMES = ("claude-",)
"""Beginnings of names that mean whatever model is loaded."""
INLINE_CHARS = 8192
"""Prompts up to this length are encoded on the event loop (well under 1 ms); longer ones on a thread."""


class ServedModel:
    """An `LLM` under its names on the wire, with its running generations.

    Attributes: `llm`; `name`, the model's id on the wire; `aliases`, its further ids; `created`, Unix
    seconds; `settings`; `live`; `form`, how the model writes calls and thoughts.
    """

    def __init__(
        self, llm: LLM, name: str | None, settings: ServerSettings, tracing: Tracing | None = None
    ) -> None:
        self.llm = llm
        self.name = name or short_name(llm.model_name)
        self.created = self.created_now()
        self.settings = settings
        self.live = LiveGenerations()
        self._tracing = tracing
        self.limits = ClientLimits(settings.limits, KeyRing(settings).limits)
        self.form = AnswerForm.of(llm.tokenizer)
        self.aliases = tuple(settings.aliases)
        self._names = {self.name, llm.model_name}
        for alias, model in settings.aliases.items():
            if model is not None and model not in self._names:
                raise UsageError(
                    f"--alias {alias}={model}: that model is not loaded; this server has {self.name!r}"
                )

    @property
    def max_context(self) -> int:
        """Tokens that prompt and answer may have together, as configured."""
        return self.llm.config.max_context or self.llm.spec.max_context

    def resolve_name(self, model: str | None) -> str:
        """The name that an answer shows for a request's `model`; raises `APIError` 404 for an unknown one.

        Aliases, and the names of Claude models, which clients have built in, mean the loaded model and are
        shown as they were asked for. None, no model named, is the loaded one.
        """
        if model is None or model in self._names:
            return self.name
        if model in self.aliases or model.startswith(FOREIGN_NAMES):
            return model
        message = f"the model {model[:200]!r} is not served here; this server has {self.name!r}"
        raise APIError(404, message, param="model", code="model_not_found")

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
        return Generation(
            streams,
            params.n,
            self.live,
            num_predicted=len(hints.prediction),
            span=span,
            timeout=self.settings.request_timeout,
            interval=self.settings.stream_interval,
            on_end=lambda usage: self.limits.ended(hints.scope, usage.num_computed_tokens),
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
