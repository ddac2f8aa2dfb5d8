"""The text of all scopes in memory, within one bound: who uses it shares it, who does not leaves."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

from outpace import _native
from outpace.draft.log import TokenLog
from outpace.draft.suffix import SHARED_ORDERS
from outpace.types import Int32Array

__all__ = ["Scope", "ScopeTable"]

_MOST_SCOPES = 64
_LEAST_ROOM = 1024  # tokens: what an index has room for at least
_IN_USE = 60.0  # seconds since its last request, as long as which a scope stays if it can


class Scope:
    """One scope's text in memory, and its log.

    `index` may be looked up by any thread, all else belongs to the thread that learns. `room`: tokens that
    the index may have. `log` is None where nothing is on disk; until `is_loaded`, what is there is not in
    memory. `is_awaited`: that thread was told.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.room = _LEAST_ROOM
        self.index = _native.TokenIndex(self.room, SHARED_ORDERS)
        self.log: TokenLog | None = None
        self.is_loaded = self.is_awaited = False
        self.unwritten: list[Int32Array] = []
        self.used_at = 0.0  # time.monotonic() seconds

    def resize(self, room: int) -> None:
        """Let the index have so many tokens, a power of two; the oldest beyond are forgotten."""
        self.room = room
        self.index.set_capacity(room)

    def write(self) -> None:
        """Put what is not on disk yet there."""
        unwritten, self.unwritten = self.unwritten, []
        if self.log is not None and unwritten:
            self.log.append(unwritten)

    def close(self) -> None:
        """Write, and give the log back."""
        self.write()
        if self.log is not None:
            self.log.close()


class ScopeTable:
    """The scopes in memory; their indices together have room for `num_tokens`, or for the next power of two.

    One thread makes room and closes; any may use a scope.
    """

    def __init__(self, num_tokens: int) -> None:
        self._room = _LEAST_ROOM
        while self._room < num_tokens:
            self._room *= 2
        self._scopes: OrderedDict[str, Scope] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    def use(self, name: str) -> Scope:
        """The scope of that name, which is new where it was not in memory."""
        with self._lock:
            scope = self._scopes.get(name)
            if scope is None:
                scope = self._scopes[name] = Scope(name)
            else:
                self._scopes.move_to_end(name)
            scope.used_at = time.monotonic()
            return scope

    def all(self) -> Sequence[Scope]:
        """The scopes of this moment, the least recently used first."""
        with self._lock:
            return list(self._scopes.values())

    def make_room(self, scope: Scope, num_tokens: int) -> int:
        """Let a scope's index grow by so many tokens, or as far as its share goes.

        Scopes that nobody uses leave memory. Of those in use, who has more than twice what this one could
        have gives half of it; where none has, this one keeps its size and forgets its oldest text. Returns
        the tokens that it has room for then.
        """
        wanted = scope.room
        while wanted < min(scope.index.num_kept + num_tokens, self._room):
            wanted *= 2
        while True:
            others = [each for each in self.all() if each is not scope]
            room = self._room - sum(each.room for each in others)
            if len(others) >= _MOST_SCOPES:
                self._drop(others[0])
                continue
            if wanted <= room:
                break
            if time.monotonic() - others[0].used_at > _IN_USE:
                self._drop(others[0])
                continue
            share = _power_of_two(room)
            largest = max(others, key=lambda each: each.room)
            if largest.room > max(2 * share, _LEAST_ROOM):
                largest.resize(largest.room // 2)
            elif share == 0:
                self._drop(others[0])
            else:
                wanted = share
                break
        scope.resize(wanted)
        return wanted

    def _drop(self, scope: Scope) -> None:
        scope.close()
        with self._lock:
            del self._scopes[scope.name]

    def close(self) -> None:
        """Drop all scopes."""
        for scope in self.all():
            self._drop(scope)


def _power_of_two(most: int) -> int:
    """The largest that is at most `most`, if an index can be so small; else 0."""
    return 1 << (most.bit_length() - 1) if most >= _LEAST_ROOM else 0
