"""`bench step`: what one backend step costs, by the number of rows, without the engine around it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from outpace.bench.bandwidth import read_bandwidth, threads_of, utilisation
from outpace.engine.sampling import pack
from outpace.types import BLOCK_SIZE, Backend, Int32Array, ModelSpec, SamplingParams, StepBatch

ROW_COUNTS = (1, 2, 4, 8, 16, 32)
PREFILL_LENGTHS = (512, 2048)
CONTEXT = 256  # tokens in the KV cache before a timed step
DECODE_CONTEXTS = (CONTEXT, 2048, 8192)
CONCURRENT_REQUESTS = 16

MIN_RUNS, MIN_SECONDS = 10, 1.0  # a step's median is over at least both
MIN_PREFILL_RUNS = 3
MAX_RUNS = 1000  # a backend without weights ends here


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """The figures of `bench step`; the field names are the keys of its JSON and stay."""

    model: str
    isa: str
    threads: int
    weight_bytes: int  # read by one decode step
    bandwidth_gb_s: float | None  # streaming read of that many bytes; None without the native core
    step_ms: Mapping[str, float]  # rows -> milliseconds
    step_ratio: Mapping[str, float]  # rows -> times the step of one row
    prefill_tok_s: Mapping[str, float | None]  # prompt tokens -> tokens/s; None: the context is shorter
    prefill_tops: Mapping[str, float | None]  # 1e12 operations per second, see `prefill_operations`
    context_decode: Mapping[str, float | None]  # tokens of context -> tokens/s of one request
    context_ratio: Mapping[str, float | None]  # that over the one at context 256
    concurrent_decode: Mapping[str, float | None]  # requests at context 256 -> tokens/s of all together
    concurrent_ratio: float | None  # that of 16 over that of one
    mbu: float | None  # weight bytes over the time of a step of one row, as a share of the bandwidth
    load_s: float
    peak_rss_bytes: int  # of this process, before longer contexts fill the KV cache and the probe its buffer


class StepDriver:
    """Drives a backend with the rows of greedy requests, in the KV cache's first blocks.

    The backend must be idle: its engine may hold no running request meanwhile.
    """

    def __init__(self, backend: Backend, max_batch_tokens: int) -> None:
        self._backend = backend
        self._max_batch_tokens = max_batch_tokens
        self._token_ids = _token_ids(self.capacity, backend.spec.vocab_size)
        self._sampling = pack(SamplingParams(temperature=0.0, seed=0), 0, CONTEXT).record

    @property
    def capacity(self) -> int:
        """Tokens that one request may have here."""
        return min(self._backend.spec.max_context, self._backend.num_blocks * BLOCK_SIZE)

    def prefill(self, num_tokens: int) -> float:
        """Compute a prompt of `num_tokens` from nothing, in chunks of the batch limit; seconds."""
        started = perf_counter()
        for start in range(0, num_tokens, self._max_batch_tokens):
            end = min(start + self._max_batch_tokens, num_tokens)
            self._backend.step(self._batch(start, end, num_drafts=0, sample=end == num_tokens))
        return perf_counter() - started

    def step(self, num_rows: int, context: int = CONTEXT) -> float:
        """One step of `num_rows` rows after `context` tokens, all but the first as drafts; seconds.

        Every row is verified and picks a token. The KV cache must hold the context already.
        """
        batch = self._batch(context, context + num_rows, num_drafts=num_rows - 1, sample=True)
        started = perf_counter()
        self._backend.step(batch)
        return perf_counter() - started

    def fits(self, num_requests: int, context: int) -> bool:
        """Whether so many requests of `context` tokens fit side by side."""
        return context <= self.capacity and num_requests * _blocks(context) <= self._backend.num_blocks

    def fill(self, num_requests: int, context: int) -> None:
        """Give so many requests blocks of their own for `context` tokens, and write a token into each block.

        What the keys and values are does not change a step's time, but memory that was never written is no
        memory yet. Computing them all would take minutes for a long context.
        """
        last = np.minimum(np.arange(1, _blocks(context) + 1) * BLOCK_SIZE, context).astype(np.int32) - 1
        requests = np.repeat(np.arange(num_requests, dtype=np.int32), len(last))
        positions = np.tile(last, num_requests)
        for start in range(0, len(positions), self._max_batch_tokens):
            part = slice(start, start + self._max_batch_tokens)
            self._backend.step(self._single_rows(requests[part], positions[part], context, sample=False))

    def decode(self, num_requests: int, context: int) -> float:
        """One step in which each of the requests picks its token from `context` tokens; seconds."""
        requests = np.arange(num_requests, dtype=np.int32)
        positions = np.full(num_requests, context - 1, np.int32)
        batch = self._single_rows(requests, positions, context, sample=True)
        started = perf_counter()
        self._backend.step(batch)
        return perf_counter() - started

    def _single_rows(
        self, requests: Int32Array, positions: Int32Array, context: int, *, sample: bool
    ) -> StepBatch:
        """A row for each position; request i has the i-th run of blocks for `context` tokens."""
        count, width = len(positions), _blocks(context)
        return StepBatch(
            token_ids=self._token_ids[positions],
            row_start=np.arange(count + 1, dtype=np.int32),
            num_computed_tokens=positions,
            num_draft_tokens=np.zeros(count, np.int32),
            sample=np.full(count, sample, np.uint8),
            block_tables=requests[:, np.newaxis] * width + np.arange(width, dtype=np.int32),
            sampling=np.repeat(self._sampling, count),
        )

    def _batch(self, start: int, end: int, *, num_drafts: int, sample: bool) -> StepBatch:
        return StepBatch(
            token_ids=self._token_ids[start:end],
            row_start=np.array([0, end - start], np.int32),
            num_computed_tokens=np.array([start], np.int32),
            num_draft_tokens=np.array([num_drafts], np.int32),
            sample=np.array([sample], np.uint8),
            block_tables=np.arange(_blocks(end), dtype=np.int32)[np.newaxis],
            sampling=self._sampling,
        )


def median_seconds(run: Callable[[], float], *, min_runs: int, min_seconds: float) -> float:
    """The median of repeated runs after one warm-up run, each of which returns its own seconds."""
    run()
    seconds: list[float] = []
    while len(seconds) < min_runs or (sum(seconds) < min_seconds and len(seconds) < MAX_RUNS):
        seconds.append(run())
    return median(seconds)


def measure_steps(driver: StepDriver) -> dict[str, float]:
    """Milliseconds of one step by the number of rows, at context 256, as far as the context reaches."""
    counts = [rows for rows in ROW_COUNTS if CONTEXT + rows <= driver.capacity]
    if counts:
        driver.prefill(CONTEXT)
    return {
        str(rows): 1e3
        * median_seconds(lambda rows=rows: driver.step(rows), min_runs=MIN_RUNS, min_seconds=MIN_SECONDS)
        for rows in counts
    }


def measure_prefill(driver: StepDriver) -> dict[str, float | None]:
    """Tokens/s of computing a prompt, by its length; None where it does not fit the context."""
    return {
        str(length): length
        / median_seconds(
            lambda length=length: driver.prefill(length), min_runs=MIN_PREFILL_RUNS, min_seconds=MIN_SECONDS
        )
        if length <= driver.capacity
        else None
        for length in PREFILL_LENGTHS
    }


def prefill_operations(spec: ModelSpec, num_tokens: int) -> int:
    """2 x (tokens x weights of the layers' matrices + weights of the output head).

    The output head multiplies the last token only; attention's own products, whose number grows with the
    square of the length, are left out, as are the embeddings, which nothing multiplies.
    """
    heads = spec.head_dim * (2 * spec.num_heads + 2 * spec.num_kv_heads)  # o and q; k and v
    layer = spec.hidden_size * (heads + 3 * spec.intermediate_size)
    return 2 * (num_tokens * spec.num_layers * layer + spec.vocab_size * spec.hidden_size)


def measure_decode(driver: StepDriver, num_requests: int, context: int) -> float | None:
    """Tokens/s of requests that decode together, a row each; None where they do not fit."""
    if not driver.fits(num_requests, context):
        return None
    driver.fill(num_requests, context)
    step = median_seconds(
        lambda: driver.decode(num_requests, context), min_runs=MIN_RUNS, min_seconds=MIN_SECONDS
    )
    return num_requests / step


def quotient(value: float | None, of: float | None) -> float | None:
    """`value / of`; None where one of them is."""
    return value / of if value is not None and of else None


def peak_rss_bytes() -> int:
    """The most memory that this process has held at once.

    From /proc where there is one: getrusage also counts what the parent process held at the fork.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def bench_step(
    model: str, backend: Backend, *, max_batch_tokens: int, load_seconds: float, close: Callable[[], None]
) -> StepReport:
    """Measure the steps of an idle backend, then close it (`close`) and measure the memory's bandwidth.

    The probe's buffer is as large as the weights, so the weights are given back first.
    """
    driver = StepDriver(backend, max_batch_tokens)
    prefill_tok_s = measure_prefill(driver)
    step_ms = measure_steps(driver)
    peak = peak_rss_bytes()
    context_decode = {str(tokens): measure_decode(driver, 1, tokens) for tokens in DECODE_CONTEXTS}
    alone = context_decode[str(CONTEXT)]
    together = measure_decode(driver, CONCURRENT_REQUESTS, CONTEXT)
    spec, weight_bytes, description = backend.spec, backend.weight_bytes, backend.description
    close()
    threads = threads_of(description)
    bandwidth = read_bandwidth(weight_bytes, threads) if weight_bytes else None
    return StepReport(
        model=model,
        isa=str(description.get("isa", "none")),
        threads=threads,
        weight_bytes=weight_bytes,
        bandwidth_gb_s=bandwidth,
        step_ms=step_ms,
        step_ratio={rows: milliseconds / step_ms["1"] for rows, milliseconds in step_ms.items()},
        prefill_tok_s=prefill_tok_s,
        prefill_tops={length: _tops(spec, int(length), speed) for length, speed in prefill_tok_s.items()},
        context_decode=context_decode,
        context_ratio={tokens: quotient(speed, alone) for tokens, speed in context_decode.items()},
        concurrent_decode={"1": alone, str(CONCURRENT_REQUESTS): together},
        concurrent_ratio=quotient(together, alone),
        mbu=utilisation(weight_bytes, step_ms.get("1", 0.0) / 1e3, bandwidth),
        load_s=load_seconds,
        peak_rss_bytes=peak,
    )


def _tops(spec: ModelSpec, num_tokens: int, tok_s: float | None) -> float | None:
    return None if tok_s is None else prefill_operations(spec, num_tokens) / num_tokens * tok_s / 1e12


def _blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


def _token_ids(count: int, vocab_size: int) -> Int32Array:
    """The same arbitrary token ids every time."""
    return np.random.default_rng(0).integers(0, vocab_size, count, dtype=np.int32)
