"""How much a client may ask for: requests and tokens in a minute, requests at once.

Each is a bucket that fills steadily: a client that was idle may spend a minute's worth at once. Tokens are
known when an answer ends, so they are taken then and the bucket may fall below empty; the next request waits
until it is out of debt. Prompt tokens from the prefix cache are free: they cost nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Annotated

from annotated_types import Ge

from outpace.server.errors import APIError

_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """A key's limits; None: none."""

    requests_per_minute: Annotated[int, Ge(1)] | None = None
    tokens_per_minute: Annotated[int, Ge(1)] | None = None
    max_concurrent: Annotated[int, Ge(1)] | None = None

    def or_else(self, default: KeyLimits) -> KeyLimits:
        """These, and the default's where there is none."""
        mine = {name.name: getattr(self, name.name) for name in fields(self)}
        return KeyLimits(**{n: getattr(default, n) if value is None else value for n, value in mine.items()})


class _Bucket:
    """What is left of `capacity` units a minute."""

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self._level = float(capacity)
        self._at = now

    def level(self, now: float) -> float:
        self._level = min(self.capacity, self._level + (now - self._at) * self.capacity / _MINUTE)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        self._level = self.level(now) - amount

    def seconds_until(self, level: float, now: float) -> float:
        return max(0.0, level - self.level(now)) * _MINUTE / self.capacity


class _Client:
    def __init__(self, limits: KeyLimits, now: float) -> None:
        self.limits = limits
        self.max_concurrent = limits.max_concurrent
        self.num_running = 0
        self.buckets = {
            kind: _Bucket(capacity, now)
            for kind, capacity in (
                ("requests", limits.requests_per_minute),
                ("tokens", limits.tokens_per_minute),
            )
            if capacity is not None
        }


class ClientLimits:
    """The limits of all clients, by the scope of their keys; `known` tells them as they are at the moment.

    One event loop uses it. Where a client's limits change, it begins anew with those.
    """

    def __init__(
        self,
        default: KeyLimits,
        known: Callable[[], Mapping[str, KeyLimits]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._default = default
        self._known = known
        self._clock = clock
        self._clients: dict[str, _Client] = {}

    def admit(self, scope: str) -> None:
        """A request begins; `ended` must follow. Raises `APIError` 429 where it is over a limit."""
        client, now = self._client(scope), self._clock()
        if client.max_concurrent is not None and client.num_running >= client.max_concurrent:
            raise _refusal(f"{client.num_running} requests of this key run, its limit", 1.0)
        for kind, bucket in client.buckets.items():
            needed = 1.0 if kind == "requests" else min(1.0, bucket.capacity)
            if (wait := bucket.seconds_until(needed, now)) > 0:
                raise _refusal(f"this key's {bucket.capacity} {kind} per minute are spent", wait)
        if requests := client.buckets.get("requests"):
            requests.take(1, now)
        client.num_running += 1

    def ended(self, scope: str, num_tokens: int) -> None:
        """A request that was admitted has ended, and took so many tokens."""
        client = self._client(scope)
        client.num_running -= 1
        if tokens := client.buckets.get("tokens"):
            tokens.take(num_tokens, self._clock())

    def headers(self, scope: str, *, anthropic: bool) -> dict[str, str]:
        """What is left, in the headers that the dialect's clients read."""
        now = self._clock()
        told: dict[str, str] = {}
        for kind, bucket in self._client(scope).buckets.items():
            reset = bucket.seconds_until(bucket.capacity, now)
            left = str(max(0, math.floor(bucket.level(now))))
            if anthropic:
                when = datetime.now(UTC) + timedelta(seconds=math.ceil(reset))
                said = {"limit": str(bucket.capacity), "remaining": left}
                said["reset"] = when.isoformat(timespec="seconds").replace("+00:00", "Z")
                told |= {f"anthropic-ratelimit-{kind}-{name}": value for name, value in said.items()}
            else:
                said = {"limit": str(bucket.capacity), "remaining": left, "reset": f"{reset:.3f}s"}
                told |= {f"x-ratelimit-{name}-{kind}": value for name, value in said.items()}
        return told

    def _client(self, scope: str) -> _Client:
        known = self._known()
        client = self._clients.get(scope)
        if scope not in known:
            if client is not None:  # its key was removed, and its requests come to their ends
                return client
            # Where no key is asked for, anyone could present a new one with each request.
            scope = ""
            client = self._clients.get(scope)
        limits = known.get(scope, KeyLimits()).or_else(self._default)
        if client is None or client.limits != limits:
            before, client = client, _Client(limits, self._clock())
            client.num_running = before.num_running if before is not None else 0
            self._clients[scope] = client
        return client


def _refusal(message: str, wait: float) -> APIError:
    return APIError(
        429,
        f"{message}; try again later",
        type="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"retry-after": str(max(1, math.ceil(wait)))},
    )
