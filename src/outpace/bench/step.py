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
from outpace.types import BLOCK_SIZE, Backend, Int32Array, SamplingParams, StepBatch

ROW_COUNTS = (1, 2, 4, 8, 16, 32)
PREFILL_LENGTHS = (512, 2048)
CONTEXT = 256  # tokens in the KV cache before a timed step

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
    prefill_tok_s: Mapping[str, float | None]  # prompt tokens -> tokens/s; None: the context is shorter
    mbu: float | None
    load_s: float
    peak_rss_bytes: int  # of this process, before the bandwidth probe takes its buffer


class StepDriver:
    """Drives a backend with the rows of one greedy request, in the KV cache's first blocks.

    The backend must be idle: its engine may hold no running request meanwhile.
    """

    def __init__(self, backend: Backend, max_batch_tokens: int) -> None:
        self._backend = backend
        self._max_batch_tokens = max_batch_tokens
        self._token_ids = _token_ids(max(PREFILL_LENGTHS) + max(ROW_COUNTS), backend.spec.vocab_size)
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

    def _batch(self, start: int, end: int, *, num_drafts: int, sample: bool) -> StepBatch:
        return StepBatch(
            token_ids=self._token_ids[start:end],
            row_start=np.array([0, end - start], np.int32),
            num_computed_tokens=np.array([start], np.int32),
            num_draft_tokens=np.array([num_drafts], np.int32),
            sample=np.array([sample], np.uint8),
            block_tables=np.arange(-(-end // BLOCK_SIZE), dtype=np.int32)[np.newaxis],
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
    weight_bytes, description = backend.weight_bytes, backend.description
    peak = peak_rss_bytes()
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
        prefill_tok_s=prefill_tok_s,
        mbu=utilisation(weight_bytes, step_ms.get("1", 0.0) / 1e3, bandwidth),
        load_s=load_seconds,
        peak_rss_bytes=peak,
    )


def _token_ids(count: int, vocab_size: int) -> Int32Array:
    """The same arbitrary token ids every time."""
    return np.random.default_rng(0).integers(0, vocab_size, count, dtype=np.int32)
