"""`bench roofline`: where a step's time goes, and how far each operation is from what the machine can do.

The limit of an operation is the longer of two times: that of reading its weights (or keys and values) once at
the measured read bandwidth, and that of its multiply-accumulates at the measured peak of the tier's dot
product, both on as many threads as the backend uses. The bandwidth is that of a buffer as large as all
that the step reads: each operation's bytes come round once a step, after those of all the others, so a cache
helps it only as far as it holds them all. The peak is of int8, also where the operation computes in floats or
with 15 bits (attention's queries and weights), so its limit is then too low.

Between the two stands what the kernels of a matrix reach where all they read lies in the nearest caches: the
cycles from the peak to there are instructions, for scales and unpacking; those from there on are fetching,
waiting for the other threads, and what is done with the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from outpace.bench.bandwidth import Limits, measure_limits, threads_of
from outpace.engine.step_driver import StepDriver
from outpace.errors import UsageError
from outpace.types import Backend

if TYPE_CHECKING:
    from collections.abc import Generator

PREFILL_ROWS = 512
GROUP_MACS = 16 * 32  # 16 outputs x 32 inputs, one row: what a kernel unpacks at a time
MIN_RUNS, MIN_SECONDS, MAX_RUNS = 4, 0.5, 400

Bound = Literal["memory", "compute", "none"]


@dataclass(frozen=True, slots=True)
class OpTrace:
    """One operation of a step, all layers together, as the backend counts and times it."""

    op: str
    seconds: float
    num_bytes: int  # weights, keys and values that it must read, each once
    num_macs: int  # multiply-accumulates
    in_cache: float = 0.0  # seconds of its matrix products where nothing has to be fetched; 0: it has none


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One step inside the backend; its operations' seconds add up to `seconds`."""

    seconds: float
    ops: tuple[OpTrace, ...]


@runtime_checkable
class TracingBackend(Protocol):
    """A backend that can say where a step's time went."""

    def set_trace(self, on: bool) -> None:
        """Keep a trace of each step from now on, or no longer."""
        ...

    def trace(self) -> tuple[float, Sequence[tuple[str, float, int, int]]]:
        """Of the last traced step: seconds, and (operation, seconds, bytes, multiply-accumulates)."""
        ...

    def product_seconds(self) -> dict[str, float]:
        """Measure, for that step's operations, what their products take where nothing has to be fetched."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OpFigures:
    """One operation's figures; the field names are keys of the JSON and stay."""

    op: str
    ms: float
    num_bytes: int
    gb_s: float
    num_macs: int
    gops: float  # 2 x MACs / 1e9 per second
    limit_ms: float
    bound: Bound  # which of the two limits is the longer; none: it neither reads nor multiplies
    share: float | None  # of the limit: limit_ms / ms; None where there is no limit
    cycles_per_group: float | None  # core cycles for 16 outputs x 32 inputs and one row
    cycles_in_cache: float | None  # the same where nothing has to be fetched; None: it has no matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """One step's figures. `ops` ends with "python": what the caller waits for outside the native step."""

    rows: int
    context: int  # tokens in the KV cache before it
    ms: float
    limit_ms: float  # the sum of the operations' limits
    to_win: float  # ms / limit_ms: how many times faster the step would be at its limit
    ops: tuple[OpFigures, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineReport:
    """The figures of `bench roofline`; the bandwidth is of as many bytes as its largest step reads."""

    model: str
    isa: str
    threads: int
    weight_bytes: int
    limits: Limits
    steps: tuple[StepFigures, ...]


def bench_roofline(
    model: str,
    backend: Backend,
    *,
    row_counts: Sequence[int],
    context: int,
    max_batch_tokens: int,
    close: Callable[[], None],
) -> RooflineReport:
    """Trace steps of so many rows after `context` tokens and one prefill chunk, then measure the limits.

    The backend must be idle; it is closed (`close`) before the memory probe takes a buffer as large as what
    the steps read. Raises UsageError where the backend keeps no traces or rounds prompts, and where the rows
    do not fit.
    """
    if not isinstance(backend, TracingBackend):
        name = backend.description.get("backend", "this one")
        raise UsageError(f"backend {name} does not trace its operations; roofline needs the native one")
    if backend.description.get("prefill") == "fast":
        raise UsageError("roofline measures the exact products: leave --prefill at exact")
    driver = StepDriver(backend, max_batch_tokens)
    _check(row_counts, context, driver.capacity, max_batch_tokens)
    description, weight_bytes = backend.description, backend.weight_bytes
    isa, threads = str(description["isa"]), threads_of(description)
    measured: list[tuple[int, int, StepTrace]] = []
    with _tracing(backend):
        driver.prefill(context)
        for rows in row_counts:
            measured.append((rows, context, _measure(backend, lambda rows=rows: driver.step(rows, context))))
        chunk = min(PREFILL_ROWS, max_batch_tokens, driver.capacity)
        measured.append((chunk, 0, _measure(backend, lambda: driver.prefill(chunk))))
    close()
    limits = measure_limits(isa, threads, max(_num_bytes(trace) for _, _, trace in measured))
    steps = tuple(step_figures(rows, before, trace, limits, threads) for rows, before, trace in measured)
    return RooflineReport(
        model=model,
        isa=isa,
        threads=threads,
        weight_bytes=weight_bytes,
        limits=limits,
        steps=steps,
    )


def step_figures(rows: int, context: int, trace: StepTrace, limits: Limits, threads: int) -> StepFigures:
    """A trace against the limits."""
    ops = tuple(_op_figures(op, limits, threads) for op in trace.ops)
    limit_ms = sum(op.limit_ms for op in ops)
    return StepFigures(
        rows=rows,
        context=context,
        ms=1e3 * trace.seconds,
        limit_ms=limit_ms,
        to_win=1e3 * trace.seconds / limit_ms,
        ops=ops,
    )


def typical(runs: Sequence[StepTrace]) -> StepTrace:
    """The mean over the middle half of the runs, by their time: as robust as a median, and it adds up."""
    ordered = sorted(runs, key=lambda run: run.seconds)
    middle = ordered[len(ordered) // 4 : len(ordered) - len(ordered) // 4]
    seconds = [sum(times) / len(middle) for times in zip(*(_seconds(run) for run in middle), strict=True)]
    ops = tuple(
        OpTrace(op.op, mean, op.num_bytes, op.num_macs)
        for op, mean in zip(middle[0].ops, seconds, strict=True)
    )
    return StepTrace(sum(seconds), ops)


def _seconds(run: StepTrace) -> list[float]:
    return [op.seconds for op in run.ops]


def _op_figures(op: OpTrace, limits: Limits, threads: int) -> OpFigures:
    memory = op.num_bytes / (limits.bandwidth_gb_s * 1e9)
    compute = op.num_macs / (limits.peak_gmac_s * 1e9)
    limit = max(memory, compute)
    bound: Bound = "none" if limit == 0 else "memory" if memory >= compute else "compute"

    def cycles(seconds: float) -> float:
        return seconds * limits.clock_ghz * 1e9 * threads / (op.num_macs / GROUP_MACS)

    return OpFigures(
        op=op.op,
        ms=1e3 * op.seconds,
        num_bytes=op.num_bytes,
        gb_s=op.num_bytes / op.seconds / 1e9 if op.seconds else 0.0,
        num_macs=op.num_macs,
        gops=2 * op.num_macs / op.seconds / 1e9 if op.seconds else 0.0,
        limit_ms=1e3 * limit,
        bound=bound,
        share=limit / op.seconds if limit and op.seconds else None,
        cycles_per_group=cycles(op.seconds) if op.num_macs else None,
        cycles_in_cache=cycles(op.in_cache) if op.in_cache else None,
    )


@contextmanager
def _tracing(backend: TracingBackend) -> Generator[None, None, None]:
    backend.set_trace(True)
    try:
        yield
    finally:
        backend.set_trace(False)


def _measure(backend: TracingBackend, run: Callable[[], float]) -> StepTrace:
    """Repeat a step that returns its own seconds, after one to warm up."""
    run()
    runs: list[StepTrace] = []
    spent = 0.0
    while len(runs) < MIN_RUNS or (spent < MIN_SECONDS and len(runs) < MAX_RUNS):
        seconds = run()
        spent += seconds
        inside, ops = backend.trace()
        python = OpTrace("python", max(0.0, seconds - inside), 0, 0)
        runs.append(StepTrace(seconds, (*(OpTrace(*op) for op in ops), python)))
    middle, alone = typical(runs), backend.product_seconds()
    ops = tuple(replace(op, in_cache=alone.get(op.op, 0.0)) for op in middle.ops)
    return StepTrace(middle.seconds, ops)


def _num_bytes(trace: StepTrace) -> int:
    return sum(op.num_bytes for op in trace.ops)


def _check(row_counts: Sequence[int], context: int, capacity: int, max_batch_tokens: int) -> None:
    if not row_counts or min(row_counts) < 1 or max(row_counts) > max_batch_tokens:
        raise UsageError(f"--rows must be numbers from 1 to {max_batch_tokens} (max_batch_tokens)")
    if context < 1 or context + max(row_counts) > capacity:
        raise UsageError(
            f"--context {context} and {max(row_counts)} rows must fit {capacity} tokens: the model's context "
            "and the KV cache"
        )
