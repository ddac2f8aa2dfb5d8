"""`outpace bench roofline`: what the core counts of a step, and what the report makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_harness import null_backend
from outpace import _native
from outpace.backends.native_backend import NativeBackend
from outpace.bench.bandwidth import Limits, measure_limits
from outpace.bench.roofline import OpTrace, StepTrace, bench_roofline, step_figures, typical
from outpace.bench.step import prefill_operations
from outpace.config import kv_bytes_per_block, resolve_engine_config
from outpace.errors import BackendError, UsageError
from outpace.models.checkpoint import open_checkpoint
from outpace.types import BLOCK_SIZE
from stepping import Rows, make_batch
from tiny_checkpoint import TinyFactory

OPS = [
    "embed", "attn_norm", "qkv", "rope", "attention", "o", "ffn_norm", "gate_up", "quantize", "down",
    "output_norm", "output", "sample", "other",
]  # fmt: skip
MULTIPLYING = ("qkv", "o", "gate_up", "down", "output")
TOKENS = np.random.default_rng(3).integers(0, 300, 100).tolist()


@contextmanager
def native(path: Path, threads: int = 2) -> Iterator[NativeBackend]:
    checkpoint = open_checkpoint(path)
    options = {"kv_cache_bytes": 4 << 20, "num_threads": threads}
    backend = NativeBackend(checkpoint, resolve_engine_config(checkpoint.spec, options))
    try:
        yield backend
    finally:
        backend.close()


def traced(backend: NativeBackend, *rows: Rows) -> tuple[float, dict[str, tuple[float, int, int]]]:
    backend.set_trace(True)
    backend.step(make_batch(rows))
    seconds, ops = backend.trace()
    assert [name for name, *_ in ops] == OPS
    return seconds, {name: tuple(figures) for name, *figures in ops}


@pytest.mark.parametrize("threads", [1, 2])
def test_times_add_up_and_every_operation_has_one(tiny_checkpoint: TinyFactory, threads: int) -> None:
    with native(tiny_checkpoint("llama", dtype="Q8_0").path, threads) as backend:
        seconds, ops = traced(backend, Rows(TOKENS[:40], 0, [0, 1]))
    assert sum(op[0] for op in ops.values()) == pytest.approx(seconds)
    assert min(op[0] for op in ops.values()) > 0
    assert seconds < 1


@pytest.mark.parametrize(
    ("variant", "dtype"), [("llama", "Q4_0"), ("qwen2-tied", "Q8_0"), ("llama-k", "Q6_K")]
)
def test_every_weight_counts_once_and_every_product(
    tiny_checkpoint: TinyFactory, variant: str, dtype: str
) -> None:
    """The core counts from its matrices, `prefill_operations` from the spec."""
    path = tiny_checkpoint(variant, dtype=dtype).path
    with native(path) as backend:
        _, ops = traced(backend, Rows(TOKENS[:40], 0, [0, 1]))
        assert 2 * sum(ops[name][2] for name in MULTIPLYING) == prefill_operations(backend.spec, 40)
        # Besides the matrices a step reads the norms and biases.
        shapes = [tensor.shape for tensor in open_checkpoint(path).tensors.values()]
        vectors = 4 * sum(shape[0] for shape in shapes if len(shape) == 1)
        assert sum(ops[name][1] for name in MULTIPLYING) + vectors == backend.weight_bytes
        assert all(ops[name][2] == 0 for name in OPS if name not in (*MULTIPLYING, "attention"))


def test_the_output_head_counts_the_rows_that_choose(tiny_checkpoint: TinyFactory) -> None:
    with native(tiny_checkpoint("llama", dtype="Q8_0").path) as backend:
        head = backend.spec.vocab_size * backend.spec.hidden_size
        _, ops = traced(backend, Rows(TOKENS[:5], 0, [0], sample=False))
        assert ops["output"][1:] == (0, 0)
        assert ops["sample"][0] == 0
        _, ops = traced(backend, Rows(TOKENS[:5], 0, [0], num_draft_tokens=3), Rows(TOKENS[:2], 0, [1]))
        assert ops["output"][2] == (4 + 1) * head


def test_attention_counts_what_each_row_sees_and_reads_a_request_once(tiny_checkpoint: TinyFactory) -> None:
    with native(tiny_checkpoint("llama").path) as backend:
        spec = backend.spec
        backend.step(make_batch([Rows(TOKENS[:60], 0, [0, 1])]))
        _, ops = traced(backend, Rows(TOKENS[60:63], 60, [0, 1]), Rows(TOKENS[:1], 0, [2]))
        per_token = kv_bytes_per_block(spec, "int8") // BLOCK_SIZE
        assert ops["attention"][1] == (63 + 1) * per_token
        seen = 61 + 62 + 63 + 1
        assert ops["attention"][2] == seen * spec.num_layers * spec.num_heads * spec.head_dim * 2


def test_attention_counts_a_window(tiny_checkpoint: TinyFactory) -> None:
    with native(tiny_checkpoint("mistral-window").path) as backend:
        spec = backend.spec
        assert spec.sliding_window == 40
        backend.step(make_batch([Rows(TOKENS[:60], 0, [0, 1])]))
        _, ops = traced(backend, Rows(TOKENS[60:62], 60, [0, 1]))
        assert ops["attention"][1] == 41 * kv_bytes_per_block(spec, "int8") // BLOCK_SIZE
        assert ops["attention"][2] == 2 * 40 * spec.num_layers * spec.num_heads * spec.head_dim * 2


@pytest.mark.parametrize(("variant", "dtype"), [("llama", "Q4_1"), ("llama-k", "Q4_K"), ("llama", "BF16")])
def test_products_alone_are_of_the_traced_step(
    tiny_checkpoint: TinyFactory, variant: str, dtype: str
) -> None:
    """A prompt's products take several times a row's, and no longer than a step with all else in it may."""
    with native(tiny_checkpoint(variant, dtype=dtype).path) as backend:
        traced(backend, Rows(TOKENS[:1], 0, [0]))
        one = backend.product_seconds()
        seconds, _ = traced(backend, Rows(TOKENS[:60], 0, [0, 1]))
        many = backend.product_seconds()
    assert {name for name, value in many.items() if value > 0} == set(MULTIPLYING)
    for name in ("qkv", "o", "gate_up", "down"):
        assert 3 < many[name] / one[name] < 300
    assert 0 < sum(many.values()) < seconds


def test_a_trace_changes_no_answer_and_ends(tiny_checkpoint: TinyFactory) -> None:
    with native(tiny_checkpoint("llama", dtype="Q8_0").path) as backend:
        batch = make_batch([Rows(TOKENS[:30], 0, [0])], want_logits=True)
        plain = backend.step(batch).logits
        backend.set_trace(True)
        np.testing.assert_array_equal(backend.step(batch).logits, plain)
        last = backend.trace()
        backend.set_trace(False)
        backend.step(batch)
        assert backend.trace() == last
    with pytest.raises(BackendError, match="closed"):
        backend.trace()


def run(seconds: float, *parts: float) -> StepTrace:
    return StepTrace(seconds, tuple(OpTrace(f"op{i}", part, 8, 9) for i, part in enumerate(parts)))


def test_the_middle_half_counts_and_adds_up() -> None:
    runs = [run(4, 1, 3), run(90, 80, 10), run(6, 2, 4), run(0.1, 0.1, 0)]
    result = typical(runs)
    assert [op.seconds for op in result.ops] == [1.5, 3.5]
    assert result.seconds == 5
    assert result.ops[1] == OpTrace("op1", 3.5, 8, 9)
    assert typical([run(3, 1, 2)]).seconds == 3


def test_the_longer_limit_bounds() -> None:
    limits = Limits(bandwidth_gb_s=10, peak_gmac_s=100, clock_ghz=2)
    ops = (
        OpTrace("reads", 0.2, 10**9, 10**9),  # 100 ms of memory, 10 ms of products
        OpTrace("multiplies", 0.1, 10**8, 5 * 10**9),  # 10 ms, 50 ms
        OpTrace("neither", 0.1, 0, 0),
        OpTrace("unused", 0.0, 0, 0),
    )
    figures = step_figures(8, 256, StepTrace(0.4, ops), limits, threads=2)
    reads, multiplies, neither, unused = figures.ops
    assert (reads.bound, multiplies.bound, neither.bound) == ("memory", "compute", "none")
    assert reads.share == pytest.approx(0.5)
    assert multiplies.share == pytest.approx(0.5)
    assert (neither.share, neither.cycles_per_group, unused.gb_s, unused.gops) == (None, None, 0, 0)
    assert (reads.gb_s, multiplies.gops) == (pytest.approx(5), pytest.approx(100))
    # Two cores of 2 GHz for 0.1 s over 5e9 / 512 groups and rows.
    assert multiplies.cycles_per_group == pytest.approx(4e8 / (5e9 / 512))
    assert figures.limit_ms == pytest.approx(150)
    assert figures.to_win == pytest.approx(400 / 150)


def test_probes_are_plausible() -> None:
    tiers = _native.available_isas()
    peaks = [measure_limits(isa, 1, 1 << 20).peak_gmac_s for isa in tiers]
    assert min(peaks) > 0.1
    if len(tiers) > 1:
        assert peaks[0] > 2 * peaks[-1]  # the portable tier comes last
    limits = measure_limits("auto", 1, 8 << 20)
    assert 0.2 < limits.clock_ghz < 10
    assert 0.5 < limits.bandwidth_gb_s < 10_000
    with pytest.raises(_native.NativeError, match="isa 'sse9' cannot run here"):
        _native.int8_peak("sse9", 1)


def test_rows_and_context_must_fit(tiny_checkpoint: TinyFactory) -> None:
    with native(tiny_checkpoint("llama").path) as backend:
        for rows, context, problem in (
            ([0], 8, "--rows"),
            ([65], 8, "1 to 64"),
            ([8], 2048, "--context 2048 and 8 rows must fit"),
            ([], 8, "--rows"),
        ):
            with pytest.raises(UsageError, match=problem):
                bench_roofline(
                    "tiny",
                    backend,
                    row_counts=rows,
                    context=context,
                    max_batch_tokens=64,
                    close=backend.close,
                )


def test_a_backend_without_times_is_refused() -> None:
    backend = null_backend()
    with pytest.raises(UsageError, match="backend null does not trace"):
        bench_roofline("null", backend, row_counts=[1], context=8, max_batch_tokens=64, close=backend.close)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outpace.cli.main", "bench", "roofline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_reports_steps_and_a_prefill_chunk(model_135m: Path) -> None:
    done = bench(
        "-m", str(model_135m), "--rows", "1,3", "--context", "40", "--max-batch-tokens", "64", "--json"
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert set(report) == {"model", "isa", "threads", "weight_bytes", "limits", "steps"}
    assert set(report["limits"]) == {"bandwidth_gb_s", "peak_gmac_s", "clock_ghz"}
    assert [(step["rows"], step["context"]) for step in report["steps"]] == [(1, 40), (3, 40), (64, 0)]
    for step in report["steps"]:
        assert [op["op"] for op in step["ops"]] == [*OPS, "python"]
        assert sum(op["ms"] for op in step["ops"]) == pytest.approx(step["ms"])
        assert sum(op["limit_ms"] for op in step["ops"]) == pytest.approx(step["limit_ms"])
        weights = sum(op["num_bytes"] for op in step["ops"] if op["op"] in MULTIPLYING)
        assert weights == pytest.approx(report["weight_bytes"], rel=0.01)


def test_the_tables_are_for_people(model_135m: Path) -> None:
    done = bench("-m", str(model_135m), "--rows", "1", "--context", "8", "--max-batch-tokens", "32")
    assert done.returncode == 0, done.stderr
    assert "1 rows after 8 tokens" in done.stdout
    assert "gate_up" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(("--rows", "1,two"), "--rows '1,two'"), (("--backend", "null"), "roofline needs the native one")],
)
def test_bad_calls_are_2(model_135m: Path, arguments: tuple[str, ...], problem: str) -> None:
    done = bench("-m", str(model_135m), *arguments)
    assert done.returncode == 2
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
