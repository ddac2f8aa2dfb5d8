"""A model that requests may name: where it comes from, and how it is used."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from outpace.config import EngineOptions
from outpace.llm import Footprint
from outpace.server.served import ServedModel

_LONGEST = timedelta(days=365 * 100)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that can be loaded: its name on the wire, what `LLM` takes, and what it needs."""

    name: str
    model: str
    options: EngineOptions
    footprint: Footprint


class Entry:
    """A model that requests may name. The pool changes it; others read.

    Attributes: `name`, on the wire; `source`; `served`, None while it is not in memory; `num_running`, leases
    and generations; `keep_alive`, seconds that it stays without them.
    """

    def __init__(self, source: ModelSource, served: ServedModel | None, *, stays: bool) -> None:
        self.name = source.name
        self.source = source
        self.served = served
        self.stays = stays  # whatever happens
        self.num_running = 0
        self.keep_alive = math.inf
        self.used_at = time.monotonic()
        self.leaving = False
        self.idle = asyncio.Event()
        self.idle.set()
        self.waiting: list[asyncio.Future[ServedModel]] = []
        self.arrival: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def max_context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.source.footprint.max_context

    @property
    def expires_at(self) -> datetime:
        """When it goes unless it is used until then; a hundred years ahead for one that stays."""
        waits = min(self.keep_alive, _LONGEST.total_seconds())
        since = 0.0 if self.num_running else time.monotonic() - self.used_at
        return datetime.now(UTC) + timedelta(seconds=max(0.0, waits - since))
