"""What earlier requests said, kept for those that come after: in memory, and on disk across restarts.

Memory holds an index for each scope in use, disk a log for each (`log.py`). One thread does all the work, so
that a step waits for none of it; what a killed process loses is the last second. Nothing here ever fails a
request: text that cannot be kept is not kept.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from outpace import _native
from outpace.draft.log import TokenLog, tidy
from outpace.draft.suffix import SHARED_ORDERS
from outpace.types import DraftRequest, DraftSharing, Int32Array

__all__ = ["SharedText"]

_log = logging.getLogger(__name__)

_WRITE_EVERY = 1.0  # seconds
_CHUNK = 4096  # tokens that are indexed at a time: the interpreter's lock is held meanwhile
_SHORTEST = 16  # tokens of a text that is worth keeping
_LEAD = 32  # tokens of the prompt that are kept before an output, so that its beginning can be found
_MOST_SCOPES = 64  # in memory
_MOST_PENDING = 4 << 20  # tokens that wait for the thread; what comes then is not kept


class _Scope:
    """One scope's text in memory, and its log."""

    def __init__(self, capacity: int, log: TokenLog | None) -> None:
        self.index = _native.TokenIndex(capacity, SHARED_ORDERS)
        self.log = log
        self.unwritten: list[Int32Array] = []


class SharedText:
    """The text of all scopes of one model; at most `capacity` tokens in memory, and twice that on disk.

    `folder`: where the model's logs are (`log.model_folder`); None: nothing is on disk. With `sharing` "all"
    there is one scope. The methods are called from one thread, the engine's.
    """

    def __init__(self, folder: Path | None, *, vocab_size: int, capacity: int, sharing: DraftSharing) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._capacity = capacity
        self._one_scope = sharing == "all"
        self._scopes: OrderedDict[str, _Scope] = OrderedDict()  # the least recently used first
        self._work: deque[Callable[[], None]] = deque()
        self._num_pending = 0  # tokens
        self._wakeup = threading.Condition()
        self._busy = self._closing = False
        self._thread = threading.Thread(target=self._run, name="outpace-drafts", daemon=True)
        self._thread.start()

    def index(self, scope: str) -> _native.TokenIndex:
        """The scope's index; where it is not in memory, an empty one that is filled from the log soon."""
        return self._scope(scope).index

    def add(self, request: DraftRequest) -> None:
        """Keep what the request brought: its prompt beyond what was cached, and its output."""
        start = request.num_cached_tokens if request.index == 0 else request.num_prompt_tokens - _LEAD
        start = max(0, min(start, request.num_prompt_tokens - _LEAD))
        token_ids = request.token_ids[start:].copy()
        if len(token_ids) < _SHORTEST or self._num_pending + len(token_ids) > _MOST_PENDING:
            return
        found = self._scope(request.hints.scope)
        self._num_pending += len(token_ids)

        def learn() -> None:
            _feed(found.index, token_ids)
            if found.log is not None:
                found.unwritten.append(token_ids)
            self._num_pending -= len(token_ids)

        self._put(learn)

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
        self._scopes.clear()

    # --- scopes -----------------------------------------------------------------------------------

    def _scope(self, scope: str) -> _Scope:
        name = "" if self._one_scope else scope
        with self._wakeup:  # the thread drops scopes
            found = self._scopes.get(name)
            if found is not None:
                self._scopes.move_to_end(name)
                return found
        return self._open(name)

    def _open(self, name: str) -> _Scope:
        log = None
        if self._folder is not None:
            file = hashlib.sha256(name.encode()).hexdigest()[:32] + ".tokens"
            log = TokenLog(self._folder / file, self._vocab_size, self._capacity)
        found = _Scope(max(1, self._capacity), log)
        with self._wakeup:
            self._scopes[name] = found
        if log is not None:
            self._put(lambda: _load(found, log))
        self._put(self._make_room)
        return found

    def _make_room(self) -> None:
        """Drop the scopes that were not used for longest, until the others' text is within the bound."""
        with self._wakeup:
            scopes = list(self._scopes.items())
        sizes = [min(scope.index.size, self._capacity) for _, scope in scopes]
        total = sum(sizes)
        for (name, scope), size in zip(scopes[:-1], sizes, strict=False):
            if total <= self._capacity and len(scopes) <= _MOST_SCOPES:
                break
            self._write_scope(scope)
            if scope.log is not None:
                scope.log.close()
            with self._wakeup:
                self._scopes.pop(name, None)
            total -= size

    # --- the thread -------------------------------------------------------------------------------

    def _put(self, work: Callable[[], None]) -> None:
        with self._wakeup:
            if not self._closing:
                self._work.append(work)
                self._wakeup.notify_all()

    def _run(self) -> None:
        written_at = time.monotonic()
        while True:
            with self._wakeup:
                self._busy = False
                self._wakeup.notify_all()
                if not self._work and not self._closing:
                    self._wakeup.wait(_WRITE_EVERY if self._has_unwritten() else None)
                work = self._work.popleft() if self._work else None
                self._busy = True
                closing = self._closing and work is None
            if work is not None:
                _guarded(work)
            if closing or time.monotonic() - written_at >= _WRITE_EVERY:
                written_at = time.monotonic()
                _guarded(self._write)
            if closing:
                for scope in self._scopes.values():
                    if scope.log is not None:
                        scope.log.close()
                return

    def _has_unwritten(self) -> bool:
        return any(scope.unwritten for scope in self._scopes.values())

    def _write(self) -> None:
        if not self._has_unwritten():
            return
        for scope in list(self._scopes.values()):
            self._write_scope(scope)
        if self._folder is not None:
            tidy(self._folder, 2 * self._capacity)

    def _write_scope(self, scope: _Scope) -> None:
        unwritten, scope.unwritten = scope.unwritten, []
        if scope.log is not None and unwritten:
            scope.log.append(unwritten)


def _load(scope: _Scope, log: TokenLog) -> None:
    for token_ids in log.read():
        _feed(scope.index, token_ids)


def _feed(index: _native.TokenIndex, token_ids: Int32Array) -> None:
    for start in range(0, len(token_ids), _CHUNK):
        index.append(np.ascontiguousarray(token_ids[start : start + _CHUNK]))
        time.sleep(0)  # the engine's thread may have the interpreter
    index.end_document()


def _guarded(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:  # the drafts are poorer for it, nothing else
        _log.exception("the text of earlier requests is not kept as it should be")
