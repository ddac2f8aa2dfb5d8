"""The models of a server: loaded when a request names them, unloaded when idle or for want of memory.

A request takes a lease: it waits until its model is in memory, and keeps it there until the lease and the
generations that began under it have ended. One model at a time comes or goes. Where the budget is too small
for one more, the model goes that was used last the longest time ago, idle ones first; one that is in use
takes no further requests, which wait for it to come again, and goes when those that it has are answered.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager

from outpace.engine.metrics import EngineMetrics
from outpace.errors import OutOfMemoryError, OutpaceError, OverloadedError, UsageError
from outpace.llm import LLM
from outpace.server.deadlines import deadline_exceeded
from outpace.server.errors import SERVER_ERROR, APIError, from_exception
from outpace.server.generation import LiveGenerations
from outpace.server.key_ring import KeyRing
from outpace.server.limits import ClientLimits
from outpace.server.model_entry import Entry, ModelSource
from outpace.server.served import ServedModel, short_name
from outpace.server.settings import ServerSettings
from outpace.server.tracing import Tracing

FOREIGN_NAMES = ("claude-",)
"""Beginnings of names that mean the first model."""
MAX_WAITING = 256
"""Requests that may wait for one model to come; one more is told to come later."""


class ModelPool:
    """The models of a server; its event loop alone uses it.

    `llm` is the first model, under `name`, and `others` are those that requests may load. `unloads`: whether
    the first one too may go, and come again; else the caller closes it. Attributes: `settings`; `live` and
    `limits`, generations and clients of all models; `first`; `created`, Unix seconds.

    Raises `UsageError` for names that clash or are unknown, `OutOfMemoryError` for a model that can never
    have the memory that it needs.
    """

    def __init__(
        self,
        llm: LLM,
        name: str | None,
        settings: ServerSettings,
        tracing: Tracing | None = None,
        *,
        others: Sequence[ModelSource] = (),
        unloads: bool = False,
    ) -> None:
        self.settings = settings
        self.live = LiveGenerations()
        self.limits = ClientLimits(settings.limits, KeyRing(settings).limits)
        self.created = ServedModel.created_now()
        self._tracing = tracing
        self._changing = asyncio.Lock()  # a model comes or goes
        self._tasks: set[asyncio.Task[None]] = set()
        source = ModelSource(name or short_name(llm.model_name), llm.model_name, llm.options, llm.footprint)
        self.first = Entry(source, None, stays=not unloads)
        self.first.served = self._serve(self.first, llm)
        self._entries: dict[str, Entry] = {}
        for entry in (self.first, *(Entry(source, None, stays=False) for source in others)):
            if self._entries.setdefault(entry.name, entry) is not entry:
                raise UsageError(
                    f"two models have the name {entry.name!r}; serve one of them, or rename a file"
                )
            self._check_size(entry)
        self._aliases = {alias: self._aliased(alias, model) for alias, model in settings.aliases.items()}
        _prepared(llm)

    def _check_size(self, entry: Entry) -> None:
        needed = entry.source.footprint.num_bytes
        needed += self.first.source.footprint.num_bytes if self.first.stays and entry is not self.first else 0
        if self.settings.memory_bytes is not None and needed > self.settings.memory_bytes:
            raise OutOfMemoryError(
                f"{entry.name} needs {needed >> 20} MB with its KV cache, but all models together may take "
                f"{self.settings.memory_bytes >> 20} MB; raise --memory or lower --kv-cache"
            )

    def _aliased(self, alias: str, model: str | None) -> Entry:
        if model is None:
            return self.first
        for entry in self._entries.values():
            if model in {entry.name, entry.source.model}:
                return entry
        names = ", ".join(map(repr, self._entries))
        raise UsageError(f"--alias {alias}={model}: that model is not served; this server has {names}")

    # --- names ----------------------------------------------------------------------------------

    @property
    def named(self) -> list[tuple[str, Entry]]:
        """What requests may name: the models, then their aliases."""
        return [*self._entries.items(), *self._aliases.items()]

    @property
    def loaded(self) -> list[Entry]:
        """The models in memory."""
        return [entry for entry in self._entries.values() if entry.served is not None]

    @property
    def served(self) -> list[ServedModel]:
        """The same, as requests use them."""
        return [entry.served for entry in self.loaded if entry.served is not None]

    def find(self, model: str | None) -> tuple[Entry, str]:
        """The model that a request's `model` means, and the name that the answer shows.

        Aliases, and the names of Claude models, which clients have built in, are shown as they were asked
        for; the latter, and None, mean the first model. Raises `APIError` 404 for an unknown name.
        """
        if model is None:
            return self.first, self.first.name
        if model in self._aliases:
            return self._aliases[model], model
        for entry in self._entries.values():
            if model in {entry.name, entry.source.model}:
                return entry, entry.name
        if model.startswith(FOREIGN_NAMES):
            return self.first, model
        names = ", ".join(map(repr, self._entries))
        message = f"the model {model[:200]!r} is not served here; this server has {names}"
        raise APIError(404, message, param="model", code="model_not_found")

    def engine_metrics(self) -> Mapping[str, EngineMetrics]:
        """What the engines of the models in memory count, by name."""
        return {served.name: served.llm.loop.engine.metrics for served in self.served}

    # --- use ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lease(
        self, model: str | None, keep_alive: float | None = None, *, deadline: float = 0.0
    ) -> AsyncGenerator[tuple[ServedModel, str], None]:
        """The model that a request names, loaded if need be, and the name that its answer shows.

        It stays in memory while the lease lasts, and longer where a generation was started. `keep_alive`
        says for how many seconds afterwards, from now on. Nobody waits for it beyond the `deadline`, in
        `time.perf_counter()` seconds, if not 0; then it still comes for others. Raises `APIError`.
        """
        entry, name = self.find(model)
        served = await self._take(entry, deadline)
        if keep_alive is not None and not entry.stays:
            entry.keep_alive = keep_alive
        try:
            yield served, name
        finally:
            self._release(entry)

    async def expire(self, model: str | None) -> str:
        """Unload a model: now, or when its running requests have ended. Return its own name.

        Raises `APIError` for an unknown one and for one that stays.
        """
        entry, _ = self.find(model)
        if entry.stays:
            raise APIError(409, f"{entry.name} can't be unloaded", param="model", code="model_stays")
        entry.keep_alive = 0.0
        if not entry.num_running:  # else the last one's end has it unloaded
            await self._unload_idle(entry)
        return entry.name

    def close(self) -> None:
        """Close the models that are in memory. No request may run."""
        for entry in self.loaded:
            if entry.served is not None and not entry.stays:
                entry.served.llm.close()

    async def _take(self, entry: Entry, deadline: float) -> ServedModel:
        if entry.served is not None and not entry.leaving:
            self._hold(entry)
            return entry.served
        if len(entry.waiting) >= MAX_WAITING:
            error = OverloadedError(f"{MAX_WAITING} requests wait for {entry.name} to be loaded")
            raise from_exception(error)
        granted: asyncio.Future[ServedModel] = asyncio.get_running_loop().create_future()
        entry.waiting.append(granted)
        if entry.arrival is None:
            entry.arrival = self._begin(self._bring(entry))
        seconds = max(0.0, deadline - time.perf_counter()) if deadline else None
        try:
            await asyncio.wait([granted], timeout=seconds)
        except asyncio.CancelledError:
            if not granted.cancel() and granted.exception() is None:
                self._release(entry)
            raise
        if granted.cancel():  # it had no result
            raise deadline_exceeded(f"{entry.name} is not loaded yet")
        return granted.result()

    def _hold(self, entry: Entry) -> None:
        entry.num_running += 1
        entry.idle.clear()
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    def _release(self, entry: Entry) -> None:
        entry.num_running -= 1
        entry.used_at = time.monotonic()
        if entry.num_running:
            return
        entry.idle.set()
        if entry.keep_alive < math.inf and not entry.stays:
            loop = asyncio.get_running_loop()
            entry.timer = loop.call_later(entry.keep_alive, lambda: self._begin(self._unload_idle(entry)))

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self._tasks.discard)
        return task

    # --- coming and going -----------------------------------------------------------------------

    async def _bring(self, entry: Entry) -> None:
        """Load a model and let in those who wait for it."""
        try:
            async with self._changing:
                served = entry.served = entry.served or await self._load(entry)
        except Exception as error:
            for granted in self._waiters(entry):
                granted.set_exception(error)
            return
        for granted in self._waiters(entry):
            self._hold(entry)
            granted.set_result(served)

    def _waiters(self, entry: Entry) -> list[asyncio.Future[ServedModel]]:
        waiting, entry.waiting, entry.arrival = entry.waiting, [], None
        return [granted for granted in waiting if not granted.done()]

    async def _load(self, entry: Entry) -> ServedModel:
        source = entry.source
        await self._make_room(source.footprint.num_bytes)
        if self.live.draining:
            raise APIError(503, "the server is shutting down", type=SERVER_ERROR, code="shutting_down")
        try:
            llm = await asyncio.to_thread(lambda: _prepared(LLM(source.model, **source.options)))
        except OutpaceError as error:
            message = f"{entry.name} can't be loaded: {error}"
            raise APIError(500, message, type=SERVER_ERROR, code="model_not_loaded") from error
        entry.keep_alive = self.settings.keep_alive if entry is not self.first else math.inf
        entry.used_at = time.monotonic()
        return self._serve(entry, llm)

    def _serve(self, entry: Entry, llm: LLM) -> ServedModel:
        return ServedModel(
            llm,
            entry.name,
            self.settings,
            self.live,
            self.limits,
            self._tracing,
            on_start=lambda: self._hold(entry),
            on_end=lambda: self._release(entry),
        )

    async def _make_room(self, needed: int) -> None:
        budget = self.settings.memory_bytes
        while budget is not None:
            if sum(entry.source.footprint.num_bytes for entry in self.loaded) + needed <= budget:
                return
            leaves = [entry for entry in self.loaded if not entry.stays]
            await self._unload(min(leaves, key=lambda entry: (entry.num_running > 0, entry.used_at)))

    async def _unload_idle(self, entry: Entry) -> None:
        """Unload a model unless it is in use, or was since it was to go."""
        async with self._changing:
            idle = time.monotonic() - entry.used_at
            if entry.served is not None and not entry.num_running and idle >= entry.keep_alive:
                await self._unload(entry)

    async def _unload(self, entry: Entry) -> None:
        entry.leaving = True
        await entry.idle.wait()
        served, entry.served, entry.leaving = entry.served, None, False
        if served is not None:
            await asyncio.to_thread(served.llm.close)


def _prepared(llm: LLM) -> LLM:
    """The model, ready for grammars.

    At the first of them it would hold up every stream: the grammars' library takes up to half a second for a
    large vocabulary. It keeps the interpreter to itself meanwhile, so even on a thread streams wait for it.
    Those that clients used before are then compiled again, beside what the server does.
    """
    llm.loop.engine.grammars.warm_up()
    return llm
