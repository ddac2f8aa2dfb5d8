"""Which requests run in the next step, with how many rows; and the blocks that this takes.

There is no prefill phase and no decode phase: each request's `num_computed_tokens` catches up with its
`num_tokens` (and its draft), within one budget of rows per step. Requests that decode go first, and prompts
beside them take no more rows than `Pacing` allows, so a long prompt stalls nobody; clients share these rows.
A prompt's blocks are reserved when it is admitted; where a decoding request finds no block, the one that was
admitted last gives its blocks back and is computed again later. No two requests compute the same blocks: who
comes second waits for the first, and everyone else goes past it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from outpace.engine.block_pool import BlockPool
from outpace.engine.disk_tier import DiskTier
from outpace.engine.fair_queue import FairQueue, party_of, share_rows
from outpace.engine.pacing import Pacing
from outpace.engine.request import Request
from outpace.engine.shared_prefill import is_being_computed
from outpace.types import BLOCK_SIZE, EngineConfig

__all__ = ["Scheduler", "StepPlan"]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: request i computes its next `num_new[i]` tokens and may carry `max_draft[i]` drafts.

    A request whose last known token is among them (`sample[i]`) yields a token. `chunks` are the parts of
    prompts among them: (rows, tokens that the last of them sees).
    """

    requests: list[Request]
    num_new: list[int]
    max_draft: list[int]
    sample: list[bool]
    chunks: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


class Scheduler:
    """Holds the waiting and the running requests; those that run in the order of admission.

    `max_draft_tokens` is per request and step; 0: no drafts. With `disk`, blocks of prefixes come from there
    where the memory's cache lacks them.
    """

    def __init__(
        self, pool: BlockPool, config: EngineConfig, max_draft_tokens: int, disk: DiskTier | None = None
    ) -> None:
        self.pool = pool
        self.disk = disk
        self.waiting = FairQueue()
        self.running: list[Request] = []
        self.num_preemptions = 0
        self.pacing = Pacing(config.max_stall_ms / 1000)
        self._max_rows = config.max_batch_tokens
        self._max_running = min(config.max_num_seqs, config.max_batch_tokens)  # a row for everyone
        self._max_draft_tokens = max_draft_tokens
        # Who found no room last, and pool.num_releases then: until that grows it would find none again.
        self._refused: tuple[Request, int] | None = None

    def add(self, request: Request) -> None:
        """Queue a new request."""
        self.waiting.add(request)

    def least_seconds(self, request: Request) -> float:
        """What a new request's prompt takes at the best speed seen; 0 where that is not known.

        What memory or disk holds of it takes none, nor what another request computes just now.
        """
        if self._is_on_its_way(request, self.running):
            return 0.0
        start = len(self._find_cached(request))
        if self.disk is not None and not request.params.embed:
            limit = (request.num_tokens - 1) // BLOCK_SIZE
            start += self.disk.find(request.digests(limit), start, limit)
        return self.pacing.least_seconds(start * BLOCK_SIZE, request.num_tokens)

    def schedule(self) -> StepPlan:
        """Choose the next step's rows and take the blocks they need. The plan may be empty."""
        self._take_loaded()
        plan = StepPlan([], [], [], [])
        prefilling = self._schedule_decodes(plan)
        budget = self._max_rows - len(plan.requests)
        draft_budget = 0
        if self._max_draft_tokens and plan.requests:
            # Drafts may take all that is left, or half where a prompt wants it too.
            draft_budget = budget // 2 if prefilling or self.waiting else budget
            draft_budget = self._allow_drafts(plan, draft_budget)
        budget -= draft_budget
        self._admit_waiting(prefilling, budget)
        self._schedule_prefills(plan, prefilling, budget)
        return plan

    def _schedule_decodes(self, plan: StepPlan) -> list[Request]:
        """Give each decoding request its row; return those that are still in their prompt."""
        prefilling: list[Request] = []
        for request in self.running.copy():
            if request.num_tokens - request.num_computed_tokens != 1:
                prefilling.append(request)
            elif self._make_room(request):
                plan.requests.append(request)
                plan.num_new.append(1)
                plan.max_draft.append(0)
                plan.sample.append(True)
        # Some may be preempted since.
        return [request for request in prefilling if request.block_ids and request.load is None]

    def _make_room(self, request: Request) -> bool:
        """See that a decoding request has a block for its next row. False where it was preempted itself.

        Requests are visited oldest first, so whoever is preempted here has no row in the plan yet.
        """
        if not request.block_ids:  # preempted earlier in this step
            return False
        while len(request.block_ids) * BLOCK_SIZE < request.num_tokens:
            block = self.pool.allocate()
            if block is not None:
                request.block_ids.append(block)
                continue
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is request:
                return False
        return True

    def _allow_drafts(self, plan: StepPlan, budget: int) -> int:
        """Share `budget` rows among the plan's requests as room for drafts; return what was given."""
        given = 0
        for i, request in enumerate(plan.requests):
            share = (budget - given) // (len(plan.requests) - i)
            if not request.hints.drafts:
                continue
            # Of a draft of k tokens, k + 1 tokens may come; more than may still be generated is waste.
            wanted = min(self._max_draft_tokens, request.max_total_tokens - request.num_tokens - 1, share)
            if wanted <= 0:
                continue
            while len(request.block_ids) * BLOCK_SIZE < request.num_tokens + wanted:
                if self.pool.num_free <= len(self.running):  # drafts never push anyone out
                    break
                block = self.pool.allocate()
                assert block is not None
                request.block_ids.append(block)
            wanted = min(wanted, len(request.block_ids) * BLOCK_SIZE - request.num_tokens)
            plan.max_draft[i] = wanted
            given += wanted
        return given

    def _schedule_prefills(self, plan: StepPlan, prefilling: list[Request], budget: int) -> None:
        """Share `budget` rows among those in their prompts; fewer where others decode in this step."""
        if not prefilling:
            return
        if plan.requests:
            deepest = max(request.num_computed_tokens for request in prefilling)
            budget = min(budget, self.pacing.max_rows(deepest + budget))
        for request, rows in zip(prefilling, share_rows(prefilling, budget), strict=True):
            if rows > 0:
                plan.requests.append(request)
                plan.num_new.append(rows)
                plan.max_draft.append(0)
                plan.sample.append(request.num_computed_tokens + rows == request.num_tokens)
                plan.chunks.append((rows, request.num_computed_tokens + rows))

    def _admit_waiting(self, prefilling: list[Request], budget: int) -> None:
        """Let waiting requests run while there are rows for them; a client that has none in a lane gets some.

        They join `prefilling`, unless their blocks come from disk first.
        """
        if budget <= 0 or not self.waiting:
            return
        parties = {party_of(request) for request in prefilling}
        missing = sum(request.num_tokens - request.num_computed_tokens for request in prefilling)
        for request in self.waiting:
            if len(self.running) >= self._max_running:
                return
            if missing >= budget and party_of(request) in parties:
                continue
            if self._is_on_its_way(request, prefilling):
                continue
            if not self._admit(request):
                return
            if request.load is None:
                prefilling.append(request)
                parties.add(party_of(request))
                missing += request.num_tokens - request.num_computed_tokens

    def _admit(self, request: Request) -> bool:
        """Move a waiting request to the running ones, with blocks for all of its tokens, if they fit.

        One block for each running request is left free, so that admission does not lead to preemption.
        """
        pool = self.pool
        if self.running and self._refused == (request, pool.num_releases):
            return False
        cached = self._find_cached(request)
        pool.share(cached)
        missing = request.num_blocks_needed - len(cached)
        if pool.num_free < missing + len(self.running):
            pool.release(cached)
            self._refused = request, pool.num_releases
            return False
        if pool.cache is not None and not request.prompt_counted and request.index == 0:
            request.continues = pool.cache.reuse(cached)
        request.num_registered_blocks = len(cached)
        request.num_computed_tokens = len(cached) * BLOCK_SIZE
        request.block_ids = cached
        for _ in range(missing):
            block = pool.allocate()
            assert block is not None, "the free blocks were counted"
            request.block_ids.append(block)
        self.waiting.take(request)
        self.running.append(request)
        request.admitted_at = request.admitted_at or time.perf_counter()
        if not request.prompt_counted:
            request.num_cached_tokens = request.num_computed_tokens
        if not self._load(request, request.num_registered_blocks):
            request.prompt_counted = True
        return True

    def _find_cached(self, request: Request) -> list[int]:
        if self.pool.cache is None or request.params.embed:  # an embedding is of all states
            return []
        # The last token is always computed: its logits choose the next one.
        limit = (request.num_tokens - 1) // BLOCK_SIZE
        return self.pool.cache.find(request.digests(limit), limit)

    def _is_on_its_way(self, request: Request, prefilling: Sequence[Request]) -> bool:
        """Whether the next of the prompt's blocks is in memory soon: computed, or loaded, for another."""
        if self.pool.cache is None or request.params.embed:
            return False
        if is_being_computed(request, prefilling):
            return True
        if self.disk is None or not self.disk.num_loads:
            return False
        limit = (request.num_tokens - 1) // BLOCK_SIZE
        num_cached = len(self._find_cached(request))
        return num_cached < limit and self.disk.is_loading(request.digests(limit)[num_cached])

    # --- the disk tier ------------------------------------------------------------------------------

    def _load(self, request: Request, start: int) -> bool:
        """Begin to read the blocks from `start` on that are on disk; whether there are any."""
        if self.disk is None or request.params.embed:
            return False
        limit = (request.num_tokens - 1) // BLOCK_SIZE
        end = start + self.disk.find(request.digests(limit), start, limit)
        if end == start:
            return False
        blocks = request.block_ids[start:end]
        self.pool.share(blocks)  # the load's own hold
        request.load = self.disk.load(request.digests(limit)[start:end], blocks)
        return True

    def _take_loaded(self) -> None:
        """Cache the blocks that came from disk, and let those who waited for them run."""
        if self.disk is None or self.pool.cache is None:
            return
        for load in self.disk.take_finished():
            count = load.num_loaded
            for digest, block in zip(load.digests[:count], load.block_ids, strict=False):
                self.pool.cache.insert(digest, block, proven=True)
            for request in self.running:
                if request.load is load:
                    self._loaded(request, count)
            self.pool.release(load.block_ids)

    @staticmethod
    def _loaded(request: Request, num_blocks: int) -> None:
        request.load = None
        request.num_registered_blocks += num_blocks
        request.num_computed_tokens += num_blocks * BLOCK_SIZE
        if not request.prompt_counted:
            request.prompt_counted = True
            request.num_disk_tokens = num_blocks * BLOCK_SIZE
            request.num_cached_tokens += num_blocks * BLOCK_SIZE

    # --- giving back --------------------------------------------------------------------------------

    def _preempt(self, request: Request) -> None:
        self.num_preemptions += 1
        self.running.remove(request)
        self._give_back(request)
        self.waiting.add(request)

    def _give_back(self, request: Request) -> None:
        if self.disk is not None:
            full = request.num_registered_blocks
            self.disk.keep(request.digests(full)[:full], request.hints.pin_seconds)
        if self.pool.cache is not None and request.hints.pin_seconds > 0:
            full = min(request.num_registered_blocks, request.num_prompt_tokens // BLOCK_SIZE)
            self.pool.cache.pin(request.block_ids[:full], time.monotonic() + request.hints.pin_seconds)
        request.load = None
        self.pool.release(request.block_ids)
        request.block_ids = []
        request.block_version += 1
        request.num_computed_tokens = 0
        request.num_registered_blocks = 0

    def advance(self, request: Request, num_computed: int) -> None:
        """`num_computed` more tokens of the request are in the KV cache; full blocks become shareable."""
        request.num_computed_tokens += num_computed
        cache = self.pool.cache
        full = min(request.num_computed_tokens, request.num_tokens) // BLOCK_SIZE
        if cache is None or full <= request.num_registered_blocks:
            return
        digests = request.digests(full)
        for index in range(request.num_registered_blocks, full):
            after = digests[index - 1] if index else b""
            cache.insert(digests[index], request.block_ids[index], after=after, proven=request.continues)
        request.num_registered_blocks = full

    def remove(self, request: Request) -> None:
        """Drop a request that has ended, wherever it is, and free its blocks."""
        if request.block_ids:
            self.running.remove(request)
            self._give_back(request)
        else:
            self.waiting.remove(request)
