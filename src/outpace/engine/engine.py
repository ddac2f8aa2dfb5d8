"""The step loop's body: schedule, propose, pack, step, commit.

One thread owns an Engine; only `prepare` and `check_queue` may be called from others. `EngineLoop` is that
thread.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

from outpace.draft import NoDrafter
from outpace.engine import sampling
from outpace.engine.block_pool import BlockPool
from outpace.engine.block_store import BlockStore
from outpace.engine.constraint import constrain
from outpace.engine.disk_tier import DiskTier
from outpace.engine.drafting import finish, observe, propose
from outpace.engine.metrics import EngineMetrics
from outpace.engine.output import take_tokens, terminal_delta, token_delta, token_logprobs
from outpace.engine.packer import BatchPacker
from outpace.engine.prefix_cache import PrefixCache, extend_digests
from outpace.engine.request import Request, as_prompt
from outpace.engine.scheduler import Scheduler, StepPlan
from outpace.errors import ContextLengthError, InvalidParameterError, OutOfMemoryError, OverloadedError
from outpace.text.detokenizer import Detokenizer
from outpace.text.grammar import GrammarCompiler
from outpace.text.tokenizer import Tokenizer
from outpace.types import (
    BLOCK_SIZE,
    Backend,
    Draft,
    Drafter,
    DraftHints,
    EngineConfig,
    FinishReason,
    SamplingParams,
    StepOutput,
    StepStats,
    TokenDelta,
)

__all__ = ["MAX_WAITING", "Engine"]

MAX_WAITING = 1024
"""Choices that may wait beyond those that run; one more is refused with `OverloadedError`."""

_LOAD_WAIT = 0.005
"""Seconds that a step waits where all requests wait for blocks from disk; then new ones are looked after."""

_log = logging.getLogger(__name__)

_GRAMMARS = "grammars.jsonl"  # beside the prefixes, which come from the same requests


class Engine:
    """Turns requests into tokens. `step` does one step; `has_work` says whether another is due.

    Attributes: `scheduler`; `pool`, the KV blocks; `metrics`; `grammars`, which any thread may use;
    `last_stats`, of the latest step that ran; `max_context`, the tokens that one request may have, prompt
    and output.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        config: EngineConfig,
        drafter: Drafter | None = None,
        *,
        store: BlockStore | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.backend = backend
        self.tokenizer = tokenizer
        self.config = config
        self.drafter = drafter or NoDrafter()
        drafts = config.draft != "off" and not isinstance(self.drafter, NoDrafter)
        self._context = config.max_context or backend.spec.max_context
        self.max_context = min(self._context, backend.num_blocks * BLOCK_SIZE)
        cache = PrefixCache(backend.num_blocks // 2) if config.prefix_cache else None
        self.pool = BlockPool(backend.num_blocks, cache)
        self.disk: DiskTier | None = None
        if cache is not None and store is not None and (memory := backend.kv_blocks) is not None:
            self.disk = DiskTier(store, cache, memory, backend.state_blocks)
        self.scheduler = Scheduler(self.pool, config, config.max_draft_tokens if drafts else 0, self.disk)
        self.grammars = GrammarCompiler(tokenizer, None if store is None else store.folder / _GRAMMARS)
        self.metrics = EngineMetrics(self.scheduler, self.grammars)
        self.last_stats: StepStats | None = None
        width = -(-self.max_context // BLOCK_SIZE)
        self._packer = BatchPacker(config.max_num_seqs, config.max_batch_tokens, width)
        self._open: dict[str, list[Request]] = {}  # request_id -> its choices that have not ended
        self._num_open = 0  # choices
        self._max_open = config.max_num_seqs + max_waiting
        self._deadlines: dict[str, Request] = {}  # open choices that have one, by key
        self._next_deadline = math.inf  # none of theirs is sooner
        self._pending: list[TokenDelta] = []  # ends that happened between steps

    # --- in ---------------------------------------------------------------------------------------

    def prepare(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        hints: DraftHints | None = None,
    ) -> list[Request]:
        """Check a request and make its choices. Changes nothing; any thread may call it.

        Raises `InvalidParameterError`, `ContextLengthError`, and `OutOfMemoryError` where the KV cache can
        never hold the prompt. An answer may be shorter than `max_tokens`: it ends with the context.
        """
        vocab_size = self.backend.spec.vocab_size
        sampling.validate(params, vocab_size)
        params = sampling.with_seed(params)
        prompt = as_prompt(prompt_token_ids, vocab_size)
        self._check_length(len(prompt))
        limit = self.max_context
        if params.max_tokens is not None:
            limit = min(limit, len(prompt) + params.max_tokens)
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self.tokenizer.eos_ids
        scope = self._prefix_scope(hints)
        digests: list[bytes] = []
        if self.pool.cache is not None and not params.embed:  # once for all choices, and not within a step
            extend_digests(digests, prompt, len(prompt) // BLOCK_SIZE, scope)
        return [
            Request(
                request_id,
                index,
                prompt,
                params,
                sampling.pack(params, index, len(prompt)),
                stop_ids=stop_ids,
                max_total_tokens=limit,
                detokenizer=Detokenizer(self.tokenizer, shown=params.shown_token_ids),
                hints=hints or DraftHints(),
                answer_state=None if params.grammar is None else self.grammars.start(params.grammar),
                prefix_scope=scope,
                prompt_digests=digests,
            )
            for index in range(params.n)
        ]

    def _prefix_scope(self, hints: DraftHints | None) -> bytes:
        return hints.scope.encode() if hints is not None and self.config.prefix_sharing == "scope" else b""

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens >= self._context:
            raise ContextLengthError(num_tokens, self._context, model_context=self.backend.spec.max_context)
        if num_tokens >= self.max_context:
            raise OutOfMemoryError(
                f"the prompt has {num_tokens} tokens, but the KV cache holds {self.max_context} "
                "(one of them must be left for the answer); shorten the prompt or raise --kv-cache"
            )

    def check_queue(self, num_open: int) -> None:
        """Raise `OverloadedError` where `num_open` choices, running and waiting, or prompts are too many."""
        if num_open > self._max_open:
            seconds = self._seconds_of_prompts()
            # What all wait for is done when the prompts are; a place is free when one of them is.
            raise OverloadedError(
                f"{num_open} choices would run or wait, and {self._max_open} is the limit; try again later",
                retry_after=seconds / max(1, self._num_open),
            )
        limit = self.config.max_queue_seconds
        if limit and (seconds := self._seconds_of_prompts()) > limit:
            raise OverloadedError(
                f"reading the prompts that wait takes {seconds:.0f} s, and {limit} is the limit "
                "(--max-queue-seconds); try again later",
                retry_after=seconds - limit,
            )

    def _seconds_of_prompts(self) -> float:
        """What the prompts of all open choices still take at the best speed seen. Any thread may ask."""
        choices = [request for each in list(self._open.values()) for request in tuple(each)]
        # Between their first token and the end there is one token to compute, which is no prompt.
        missing = (request.num_tokens - request.num_computed_tokens for request in choices)
        return self.scheduler.pacing.row_seconds * sum(max(0, count - 1) for count in missing)

    def enqueue(self, requests: list[Request]) -> None:
        """Queue the choices that `prepare` made."""
        first = requests[0]
        now = time.perf_counter()
        self._open[first.request_id] = requests.copy()
        self._num_open += len(requests)
        for request in requests:
            request.submitted_at = now
            self.scheduler.add(request)
            if request.hints.deadline:
                self._note_deadline(request, now)

    def _note_deadline(self, request: Request, now: float) -> None:
        """Remember when it must end; end it at once where its prompt can't be computed by then."""
        self._deadlines[request.key] = request
        self._next_deadline = min(self._next_deadline, request.hints.deadline)
        least = self.scheduler.least_seconds(request)
        left = request.hints.deadline - now
        if 0.0 < left < least:
            self._end(
                request,
                FinishReason.TIMEOUT,
                f"the prompt takes {least:.2f} s at the best, and the deadline is {left:.2f} s away; "
                "shorten the prompt, or give more time",
            )

    def _end_overdue(self, now: float) -> None:
        """End what has reached its deadline: with what there is of its answer, or as timed out."""
        if now < self._next_deadline:
            return
        for request in list(self._deadlines.values()):
            if request.hints.deadline <= now:
                reason = FinishReason.LENGTH if request.num_output_tokens else FinishReason.TIMEOUT
                self._end(request, reason)
        left = (request.hints.deadline for request in self._deadlines.values())
        self._next_deadline = min(left, default=math.inf)

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        hints: DraftHints | None = None,
    ) -> SamplingParams:
        """`prepare`, `check_queue` and `enqueue`. Returns the parameters with the seed that is used."""
        if request_id in self._open:
            raise InvalidParameterError(f"request_id {request_id!r} is in use already", "request_id")
        requests = self.prepare(prompt_token_ids, params, request_id, hints)
        self.check_queue(self._num_open + len(requests))
        self.enqueue(requests)
        return requests[0].params

    def abort(self, request_id: str) -> None:
        """End a request's open choices; the next `step` returns their ends. Unknown ids are ignored."""
        self._end_all(self._open.get(request_id, ()), FinishReason.ABORT)

    def abort_all(self) -> list[TokenDelta]:
        """End everything and return what is left to deliver."""
        for requests in list(self._open.values()):
            self._end_all(requests, FinishReason.ABORT)
        return self._take_pending()

    def fail_all(self, error: str) -> list[TokenDelta]:
        """End everything with `FinishReason.ERROR` and return what is left to deliver."""
        for requests in list(self._open.values()):
            self._end_all(requests, FinishReason.ERROR, error)
        return self._take_pending()

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to return."""
        loads = self.disk is not None and self.disk.num_loads > 0
        return self._num_open > 0 or bool(self._pending) or loads

    def close(self) -> None:
        """The engine ends, and the backend still lives: write the prefixes that shall outlive it."""
        if self.disk is not None:
            self.disk.close()

    # --- one step ---------------------------------------------------------------------------------

    def step(self) -> list[TokenDelta]:
        """Do one step; return the new tokens and the ends, those of aborts since the last step included.

        A failed backend step ends the requests that it carried, with `FinishReason.ERROR`.
        """
        start = time.perf_counter()
        self._end_overdue(start)
        plan = self.scheduler.schedule()
        if not plan.requests:
            if self.disk is not None and self.disk.num_loads:
                self.disk.wait(_LOAD_WAIT)
            else:
                assert not self._num_open, "a request alone always fits"
            return self._take_pending()
        planned = time.perf_counter()
        drafts = propose(self.drafter, plan, self.backend.spec.vocab_size, self.config.max_tree_tokens)
        masks = constrain(plan, drafts, self.tokenizer.vocab_size, self.backend.spec.vocab_size)
        proposed = time.perf_counter()
        batch = self._packer.pack(plan, drafts, masks)
        backend_start = time.perf_counter()
        try:
            out = self.backend.step(batch)
        except Exception as error:  # whatever a backend raises must not end more than its own requests
            return self._fail(plan, error)
        backend_end = time.perf_counter()
        num_new, num_accepted = self._commit(plan, drafts, out, backend_end)
        committed = time.perf_counter()
        observe(self.drafter, plan, batch.num_rows, backend_end - backend_start)
        now = time.perf_counter()
        self.last_stats = StepStats(
            num_rows=batch.num_rows,
            num_requests=len(plan.requests),
            num_draft_tokens=sum(len(draft.token_ids) for draft in drafts),
            num_accepted_tokens=num_accepted,
            num_new_tokens=num_new,
            step_seconds=now - start,
            backend_seconds=backend_end - backend_start,
            draft_seconds=proposed - planned + now - committed if any(plan.max_draft) else 0.0,
        )
        self.scheduler.pacing.observe(plan.chunks, now - start)
        self.metrics.step(self.last_stats)
        return self._take_pending()

    def _commit(
        self, plan: StepPlan, drafts: Sequence[Draft], out: StepOutput, now: float
    ) -> tuple[int, int]:
        """Append what was chosen, advance, finish. Returns how many tokens are new, and drafts accepted."""
        _pool(plan, drafts, out)
        chosen: list[list[int]] = out.token_ids.tolist()
        accepted: list[int] = out.num_accepted.tolist()
        num_new = num_accepted = 0
        for i, request in enumerate(plan.requests):
            if plan.sample[i]:
                num_accepted += accepted[i]
                if drafts[i].token_ids:
                    request.count_draft(drafts[i].proposer, len(drafts[i].token_ids), accepted[i])
                    self.metrics.draft(drafts[i].proposer, len(drafts[i].token_ids), accepted[i])
                num_new += self._commit_tokens(
                    request, i, plan.num_new[i], chosen[i][: accepted[i] + 1], out, now, drafts[i].proposer
                )
            else:
                self.scheduler.advance(request, plan.num_new[i])
        return num_new, num_accepted

    def _commit_tokens(
        self,
        request: Request,
        row: int,
        num_computed: int,
        token_ids: list[int],
        out: StepOutput,
        now: float,
        proposer: str,
    ) -> int:
        """Take a request's tokens: the accepted drafts, whose KV entries are valid, and the bonus token."""
        num_accepted = len(token_ids) - 1
        num_tokens = request.num_tokens
        try:
            taken, text = take_tokens(request, token_ids)
            if request.answer_state is not None:
                request.answer_state.accept(taken)
            logprobs = token_logprobs(out, row, taken, request.sampling.num_logprobs)
        except Exception as error:  # a defect of its text is that one request's
            _log.exception("request %s: its output failed", request.request_id)
            request.num_tokens = num_tokens  # what is not delivered does not count
            self._end(request, FinishReason.ERROR, f"{type(error).__name__}: {error}")
            return 0
        self.scheduler.advance(request, num_computed + num_accepted)
        self.metrics.tokens(request, len(taken), now)
        num_from_draft = min(num_accepted, len(taken))
        self._pending.append(token_delta(request, taken, text, logprobs, num_from_draft, proposer))
        if request.finish_reason is not None:
            self._forget(request, request.finish_reason)
        return len(taken)

    def _fail(self, plan: StepPlan, error: Exception) -> list[TokenDelta]:
        _log.error("a step of %d requests failed", len(plan.requests), exc_info=error)
        for request in plan.requests:
            self._end(request, FinishReason.ERROR, str(error) or type(error).__name__)
        return self._take_pending()

    # --- out --------------------------------------------------------------------------------------

    def _take_pending(self) -> list[TokenDelta]:
        pending, self._pending = self._pending, []
        return pending

    def _end_all(self, requests: Sequence[Request], reason: FinishReason, error: str | None = None) -> None:
        for request in list(requests):
            self._end(request, reason, error)

    def _end(self, request: Request, reason: FinishReason, error: str | None = None) -> None:
        """End a request without new tokens."""
        self._pending.append(terminal_delta(request, reason, error))
        self._forget(request, reason)

    def _forget(self, request: Request, reason: FinishReason) -> None:
        """Drop an ended request; its blocks come back."""
        self.scheduler.remove(request)
        finish(self.drafter, request)
        self.metrics.finished(request, reason, time.perf_counter())
        self._deadlines.pop(request.key, None)
        self._num_open -= 1
        choices = self._open[request.request_id]
        choices.remove(request)
        if not choices:
            del self._open[request.request_id]


def _pool(plan: StepPlan, drafts: Sequence[Draft], out: StepOutput) -> None:
    """Add the step's hidden states to the embeddings that requests ask for."""
    if out.hidden is None:
        return
    row = 0
    for request, num_new, draft in zip(plan.requests, plan.num_new, drafts, strict=True):
        if request.pooled is not None:
            request.pooled.add(request.num_computed_tokens, out.hidden[row : row + num_new])
        row += num_new + len(draft.token_ids)
