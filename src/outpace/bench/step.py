"""`bench step`: what one backend step costs, by the number of rows, without the engine around it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from outpace.bench.bandwidth import read_bandwidth, threads_of, utilisation
from outpace.engine.step_driver import CONTEXT, StepDriver
from outpace.types import Backend, ModelSpec

ROW_COUNTS = (1, 2, 4, 8, 16, 32)
PREFILL_LENGTHS = (512, 2048)
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
