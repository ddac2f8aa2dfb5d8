"""The step loop on its own thread, and the streams that carry its tokens out.

A plain thread and a condition variable: no asyncio in a step, no work while idle. A stream's consumer
waits either as a thread or as an asyncio task; only a waiting task is woken through its event loop.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from outpace.engine.engine import Engine
from outpace.engine.request import Request
from outpace.errors import InvalidParameterError, OutpaceError
from outpace.types import DraftHints, FinishReason, SamplingParams, TokenDelta

if TYPE_CHECKING:  # who iterates in a thread starts sooner without it
    import asyncio

__all__ = ["EngineLoop", "RequestStream"]

_log = logging.getLogger(__name__)


class RequestStream:
    """One request's deltas, for `for` or `async for`, in the order in which they came.

    Exactly one delta of each choice carries a `finish_reason`; the iteration ends after the last of them.
    One consumer at a time. Times are `time.perf_counter()` seconds, None until they happen.
    """

    def __init__(
        self, request_id: str, params: SamplingParams, num_prompt_tokens: int, cancel: Callable[[str], None]
    ) -> None:
        self.request_id = request_id
        self.params = params  # as submitted, with the seed that is used
        self.num_prompt_tokens = num_prompt_tokens
        self.submitted_at = time.perf_counter()
        self.first_token_at: float | None = None
        self.finished_at: float | None = None
        self._cancel = cancel
        self._deltas: deque[TokenDelta] = deque()
        self.open_choices = set(range(params.n))  # those that have not ended
        self._lock = threading.Lock()
        self._wake: Callable[[], object] | None = None
        self._quiet_until = 0.0  # until then only the end wakes the consumer

    @property
    def finished(self) -> bool:
        """Whether every choice has ended (there may still be deltas to read)."""
        return not self.open_choices

    def cancel(self) -> None:
        """End the request; its open choices get a delta with `FinishReason.ABORT`. Safe to call twice."""
        if not self.finished:
            self._cancel(self.request_id)

    def push(self, delta: TokenDelta) -> None:
        """Add a delta and wake the consumer if it waits. The loop's thread calls this."""
        wake = None
        with self._lock:
            now = time.perf_counter()  # here, so that a consumer who came before has not read a later time
            if self.first_token_at is None and delta.token_ids:
                self.first_token_at = now
            self._deltas.append(delta)
            if delta.finish_reason is not None:
                self.open_choices.discard(delta.index)
                if self.finished:
                    self.finished_at = now
            if now >= self._quiet_until or self.finished:
                wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def _pop_or_wait(self, wake: Callable[[], object]) -> TokenDelta | None:
        """The next delta; None after the last one, or where there is none yet: then `wake` will be called."""
        with self._lock:
            if self._deltas:
                return self._deltas.popleft()
            if not self.finished:
                self._wake, self._quiet_until = wake, 0.0
            return None

    def __iter__(self) -> RequestStream:
        """Iterate in a thread."""
        return self

    def __next__(self) -> TokenDelta:
        """Wait for the next delta."""
        while True:
            if self._deltas:  # only this consumer pops, so no lock is needed
                return self._deltas.popleft()
            event = threading.Event()
            delta = self._pop_or_wait(event.set)
            if delta is not None:
                return delta
            if self.finished and not self._deltas:
                raise StopIteration
            event.wait()

    def __aiter__(self) -> RequestStream:
        """Iterate in an asyncio task."""
        return self

    async def __anext__(self) -> TokenDelta:
        """Wait for the next delta."""
        import asyncio

        while True:
            if self._deltas:
                return self._deltas.popleft()
            loop = asyncio.get_running_loop()
            arrived: asyncio.Future[None] = loop.create_future()
            delta = self._pop_or_wait(partial(_wake_task, loop, arrived))
            if delta is not None:
                return delta
            if self.finished and not self._deltas:
                raise StopAsyncIteration
            await arrived

    async def batches(self, interval: float) -> AsyncGenerator[list[TokenDelta]]:
        """What has come, all of it at once, but at most one batch in `interval` seconds.

        The first batch does not wait, nor does the last. Where tokens come faster than that, their reader
        then takes its share of the processor once for several of them, and does not wake for each.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        due = 0.0
        while True:
            arrived: asyncio.Future[None] = loop.create_future()
            now = time.perf_counter()
            batch = self._take_or_wait(partial(_wake_task, loop, arrived), now, due)
            if batch:
                yield batch
                due = time.perf_counter() + interval
                continue
            if batch is not None:
                return
            timer = loop.call_later(due - now, _resolve, arrived) if now < due else None
            await arrived
            if timer is not None:
                timer.cancel()

    def _take_or_wait(self, wake: Callable[[], object], now: float, due: float) -> list[TokenDelta] | None:
        """What has come; empty after the end; None before `due` or where nothing has: then `wake` is called.

        Before `due` it is called at the end alone.
        """
        with self._lock:
            if self.finished or (self._deltas and now >= due):
                batch = list(self._deltas)
                self._deltas.clear()
                return batch
            self._wake, self._quiet_until = wake, due
            return None


def _failure(stream: RequestStream, index: int, error: str) -> TokenDelta:
    return TokenDelta(
        stream.request_id,
        index,
        (),
        "",
        finish_reason=FinishReason.ERROR,
        error=error,
        num_prompt_tokens=stream.num_prompt_tokens,
    )


def _resolve(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


def _wake_task(loop: asyncio.AbstractEventLoop, arrived: asyncio.Future[None]) -> None:
    """Resolve a future of another thread's event loop, if that loop still runs."""
    try:
        loop.call_soon_threadsafe(_resolve, arrived)
    except RuntimeError:  # the consumer's event loop is closed: nobody is left to wake
        _log.debug("a stream's event loop closed before its request ended")


class EngineLoop:
    """Runs `engine.step()` on a thread while there is work; sleeps, at no cost, while there is none."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._wakeup = threading.Condition()
        self._inbox: list[list[Request]] = []
        self._cancelled: list[str] = []
        self._streams: dict[str, RequestStream] = {}  # those with open choices
        self._num_open = 0  # choices
        self._closing = False
        # Of the thread's work; Thread.join() and is_alive(), once interrupted, take it for ended (bpo-45274).
        self._ended = threading.Event()
        # A daemon, so that a program which forgets to close still ends; LLM closes it at exit.
        self._thread = threading.Thread(target=self._run, name="outpace-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
        hints: DraftHints | None = None,
    ) -> RequestStream:
        """Queue a request and return its stream. Validation happens here, in the caller's thread.

        Raises `InvalidParameterError`, `ContextLengthError`, `OutOfMemoryError` (the KV cache can never hold
        the prompt) and `OverloadedError`.
        """
        request_id = request_id or uuid.uuid4().hex
        requests = self.engine.prepare(prompt_token_ids, params, request_id, hints)
        stream = RequestStream(request_id, requests[0].params, len(prompt_token_ids), self.cancel)
        with self._wakeup:
            if self._closing:
                raise OutpaceError("the engine is closed")
            if request_id in self._streams:
                raise InvalidParameterError(f"request_id {request_id!r} is in use already", "request_id")
            self.engine.check_queue(self._num_open + len(requests))
            self._num_open += len(requests)
            self._streams[request_id] = stream
            self._inbox.append(requests)
            self._wakeup.notify()
        return stream

    def cancel(self, request_id: str) -> None:
        """End a request, wherever it is. Unknown ids are ignored: it may have ended just now."""
        with self._wakeup:
            if request_id in self._streams:
                self._cancelled.append(request_id)
                self._wakeup.notify()

    def close(self) -> None:
        """Abort what runs, end the thread and wait for it. Safe to call twice."""
        with self._wakeup:
            self._closing = True
            self._wakeup.notify()
        if threading.current_thread() is self._thread:
            return
        try:
            self._wait_for_the_end()
        except BaseException:  # a second Ctrl-C; but an interpreter that ends amid a step aborts
            self._wait_for_the_end()
            raise
        self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether the engine's thread lives: False once closed."""
        return self._thread.is_alive() and not self._ended.is_set()

    def _wait_for_the_end(self) -> None:
        while self.is_running:  # in a forked child the thread does not live, and never ends
            self._ended.wait(1.0)

    def __enter__(self) -> EngineLoop:
        """Close at the end of a `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            _log.exception("the engine's thread has failed")
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._ended.set()

    def _fail(self, error: str) -> None:
        """Accept nothing more, and end every open choice."""
        with self._wakeup:
            self._closing = True
            streams = list(self._streams.values())
            self._streams.clear()
        for stream in streams:
            for index in sorted(stream.open_choices):
                stream.push(_failure(stream, index, error))

    def _work(self) -> None:
        engine = self.engine
        while True:
            with self._wakeup:
                while not (self._inbox or self._cancelled or self._closing or engine.has_work):
                    self._wakeup.wait()
                inbox, self._inbox = self._inbox, []
                cancelled, self._cancelled = self._cancelled, []
                closing = self._closing
            for requests in inbox:
                engine.enqueue(requests)
            for request_id in cancelled:
                engine.abort(request_id)
            if closing:
                self._deliver(engine.abort_all())
                return
            try:
                deltas = engine.step()
            except Exception as error:  # a defect of the engine's own must not leave anyone waiting
                _log.exception("the engine's step failed")
                deltas = engine.fail_all(f"{type(error).__name__}: {error}")
            self._deliver(deltas)

    def _deliver(self, deltas: Iterable[TokenDelta]) -> None:
        for delta in deltas:
            stream = self._streams[delta.request_id]
            if delta.finish_reason is not None:
                with self._wakeup:  # before its reader knows, who may submit the next one at once
                    self._num_open -= 1
                    if len(stream.open_choices) == 1:
                        del self._streams[delta.request_id]
            stream.push(delta)
