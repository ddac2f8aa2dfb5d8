"""What earlier requests said, kept for those that come after: in memory, and on disk across restarts.

Memory holds an index for each scope in use (`scopes.py`), disk a log for each (`log.py`). One thread does all
the work, so that a step waits for none of it; what a killed process loses is the last second. Nothing here
ever fails a request: text that cannot be kept is not kept.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from outpace import _native
from outpace.draft.log import TokenLog, Vocabulary, newest, tidy
from outpace.draft.scopes import Scope, ScopeTable
from outpace.types import DraftRequest, DraftSharing, Int32Array

__all__ = ["SharedText"]

_log = logging.getLogger(__name__)

_WRITE_EVERY = 1.0  # seconds
_CHUNK = 4096  # tokens that are indexed at a time: nothing is looked up in the index meanwhile
_SHORTEST = 16  # tokens of a text that is worth keeping
_LEAD = 32  # tokens of the prompt that are kept before an output, so that its beginning can be found
_MOST_PENDING = 4 << 20  # tokens that wait for the thread; what comes then is not kept
_SHORTEST_LOG = 1024  # tokens: a log is not cut below


class SharedText:
    """The text of all scopes of one model; at most `capacity` tokens in memory, and twice that on disk.

    In memory it is the next power of two, 40 bytes each. `folder`: where the model's logs are
    (`log.model_folder`); None: nothing is on disk. `vocabulary` is called once, by another thread. With
    `sharing` "all" there is one scope. The methods are called from one thread, the engine's.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        vocabulary: Callable[[], Vocabulary],
        capacity: int,
        sharing: DraftSharing,
    ) -> None:
        self._folder = folder
        self._find_vocabulary = vocabulary
        self._capacity = capacity
        self._one_scope = sharing == "all"
        self._scopes = ScopeTable(capacity)
        self._work: deque[tuple[Callable[[], object], int]] = deque()  # and the tokens that wait for it
        self._num_pending = 0  # tokens
        self._wakeup = threading.Condition()
        self._busy = self._closing = False
        self._thread = threading.Thread(target=self._run, name="outpace-drafts", daemon=True)
        self._thread.start()

    def index(self, scope: str) -> _native.TokenIndex:
        """The scope's index; where it is not in memory, an empty one that is filled from the log soon."""
        name = self._name(scope)
        found = self._scopes.use(name)
        if not found.is_awaited:
            found.is_awaited = True
            self._put(lambda: self._load(name))
        return found.index

    def add(self, request: DraftRequest) -> None:
        """Keep what the request brought: its prompt beyond what was cached, and its output."""
        start = request.num_cached_tokens if request.index == 0 else request.num_prompt_tokens - _LEAD
        start = max(0, min(start, request.num_prompt_tokens - _LEAD))
        token_ids = request.token_ids[start:].copy()
        if len(token_ids) >= _SHORTEST:
            name = self._name(request.hints.scope)
            self._put(lambda: self._learn(name, token_ids), len(token_ids))

    def flush(self) -> None:
        """Wait until all that was added can be found and is on disk."""
        self._put(self._write)
        with self._wakeup:
            self._wakeup.wait_for(lambda: not self._work and not self._busy)

    def close(self) -> None:
        """Write what is not on disk yet and end the thread. Safe to call twice."""
        with self._wakeup:
            self._closing = True
            self._wakeup.notify_all()
        self._thread.join()

    def _name(self, scope: str) -> str:
        return "" if self._one_scope else scope

    def _put(self, work: Callable[[], object], num_tokens: int = 0) -> None:
        """Let the thread do it, if it will not have too many tokens waiting for it then."""
        with self._wakeup:
            if not self._closing and self._num_pending + num_tokens <= _MOST_PENDING:
                self._num_pending += num_tokens
                self._work.append((work, num_tokens))
                self._wakeup.notify_all()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        written_at = time.monotonic()
        while True:
            with self._wakeup:
                self._busy = False
                self._wakeup.notify_all()
                if not self._work and not self._closing:
                    self._wakeup.wait(_WRITE_EVERY if self._has_unwritten() else None)
                work, num_tokens = self._work.popleft() if self._work else (None, 0)
                self._busy = True
                closing = self._closing and work is None
            if work is not None:
                _guarded(work)
                with self._wakeup:
                    self._num_pending -= num_tokens
            if closing or time.monotonic() - written_at >= _WRITE_EVERY:
                written_at = time.monotonic()
                _guarded(self._write)
            if closing:
                self._scopes.close()
                return

    def _load(self, name: str) -> Scope:
        """The scope, with what is on disk of it."""
        scope = self._scopes.use(name)
        if scope.is_loaded:
            return scope
        scope.is_loaded = True
        records: Sequence[Int32Array] = ()
        if self._folder is not None:
            file = hashlib.sha256(name.encode()).hexdigest()[:32] + ".tokens"
            scope.log = TokenLog(self._folder / file, self._vocabulary, self._capacity)
            records = scope.log.read()
        self._feed(scope, records)
        return scope

    def _learn(self, name: str, token_ids: Int32Array) -> None:
        scope = self._load(name)
        self._feed(scope, [token_ids])
        if scope.log is not None:
            scope.unwritten.append(token_ids)

    def _feed(self, scope: Scope, records: Sequence[Int32Array]) -> None:
        room = self._scopes.make_room(scope, sum(len(record) + 1 for record in records))
        for record in newest(records, room):
            for start in range(0, len(record), _CHUNK):
                scope.index.append(np.ascontiguousarray(record[start : start + _CHUNK]))
            scope.index.end_document()

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return self._find_vocabulary()

    def _has_unwritten(self) -> bool:
        return any(scope.unwritten for scope in self._scopes.all())

    def _write(self) -> None:
        if not self._has_unwritten():
            return
        for scope in self._scopes.all():
            scope.write()
        if self._folder is not None:
            self._make_room_on_disk(self._folder)

    def _make_room_on_disk(self, folder: Path) -> None:
        """Of logs that are written, the largest keep the newer half of their tokens."""
        logs = [scope.log for scope in self._scopes.all() if scope.log is not None]
        excess = tidy(folder, 2 * self._capacity)
        while excess > 0 and logs:
            largest = max(logs, key=lambda log: log.num_tokens)
            before = largest.num_tokens
            if before < 2 * _SHORTEST_LOG:
                return
            largest.cut(before // 2)
            excess -= before - largest.num_tokens


def _guarded(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception:  # the drafts are poorer for it, nothing else
        _log.exception("the text of earlier requests is not kept as it should be")
