"""Reports for people (tables) and for programs (one line of JSON)."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from outpace.bench.drafts import DraftReport
from outpace.bench.generate import GenerateReport, RequestFigures
from outpace.bench.overhead import OverheadReport
from outpace.bench.peer import Figures, PeerReport
from outpace.bench.roofline import GROUP_MACS, OpFigures, RooflineReport, StepFigures
from outpace.bench.serve import Percentiles, ServeReport
from outpace.bench.soak import SoakReport
from outpace.bench.speculation import SpeculationReport
from outpace.bench.step import StepReport

MISSING = "-"


Report = (
    StepReport
    | GenerateReport
    | DraftReport
    | SpeculationReport
    | PeerReport
    | RooflineReport
    | ServeReport
    | SoakReport
    | OverheadReport
)


def as_json(report: Report) -> str:
    """The report on one line."""
    return json.dumps(asdict(report))


def step_table(report: StepReport) -> Group:
    """`bench step` for people."""
    title = (
        f"{report.model}: {report.isa}, {report.threads} threads, {report.weight_bytes / 1e6:.0f} MB a step"
    )
    table = Table("figure", "value")
    for rows, milliseconds in report.step_ms.items():
        table.add_row(f"step, rows {rows}", f"{milliseconds:.2f} ms ({report.step_ratio[rows]:.2f}x)")
    for length, speed in report.prefill_tok_s.items():
        tops = _number(report.prefill_tops[length], " ({:.3f} TOPS)")
        table.add_row(f"prefill {length}", MISSING if speed is None else f"{speed:.0f} tokens/s{tops}")
    for context, speed in report.context_decode.items():
        ratio = _number(report.context_ratio[context], " ({:.0%})")
        table.add_row(
            f"decode, context {context}", MISSING if speed is None else f"{speed:.1f} tokens/s{ratio}"
        )
    together = report.concurrent_decode["16"]
    ratio = _number(report.concurrent_ratio, " ({:.2f}x)")
    table.add_row("decode, 16 requests", MISSING if together is None else f"{together:.1f} tokens/s{ratio}")
    table.add_row("read bandwidth", _number(report.bandwidth_gb_s, "{:.1f} GB/s"))
    table.add_row("MBU", _number(report.mbu, "{:.0%}"))
    table.add_row("load", f"{report.load_s:.2f} s")
    table.add_row("peak memory", f"{report.peak_rss_bytes / 1e6:.0f} MB")
    return Group(title, table)


def serve_table(report: ServeReport) -> Group:
    """`bench serve` for people."""
    how = f"{report.concurrency} at once" if report.rate is None else f"{report.rate:g} a second"
    title = f"{report.model} at {report.url}: {report.workload}, {how}"
    table = Table("milliseconds", "p50", "p90", "p99", "max")
    figures: dict[str, Percentiles | None] = {
        "TTFT": report.ttft, "TPOT": report.tpot, "ITL": report.itl, "E2E": report.e2e,
    }  # fmt: skip
    for name, values in figures.items():
        cells = [MISSING] * 4
        if values is not None:
            cells = [f"{value:.1f}" for value in (values.p50, values.p90, values.p99, values.max)]
        table.add_row(name, *cells)
    counted = "" if report.tokens_counted else " (pieces: the server does not count tokens)"
    errors = ", ".join(f"{count} x {kind}" for kind, count in report.errors.items())
    each = _number(report.stream_tok_s, "{:.1f}")
    lines = [
        f"{report.num_whole} of {report.num_requests} answers whole{f'; {errors}' if errors else ''}",
        f"{report.tok_s:.1f} tokens/s in all{counted}, {each} a stream (median)",
        f"{report.prompt_tokens} prompt tokens, {report.cached_tokens} of them from the server's cache",
        f"goodput {report.goodput_rps:.2f} requests/s",
    ]
    if report.client_cpu_share > 0.5:
        lines.append(f"this client took {report.client_cpu_share:.0%} of a core, which shows in the times")
    return Group(title, table, *lines)


def overhead_table(report: OverheadReport) -> Group:
    """`bench overhead` for people."""
    title = f"{report.model}: draft {report.draft}, {report.rounds} rounds"
    table = Table("side", "prompt", "output", "TTFT ms", "tokens/s")
    for side in (report.base, report.other):
        counts = str(side.prompt_tokens), str(side.completion_tokens)
        table.add_row(side.name, *counts, f"{side.ttft_ms:.1f}", f"{side.tok_s:.1f}")
    spread = f"{min(report.tok_s_ratios):.3f} to {max(report.tok_s_ratios):.3f}"
    said = f"{report.tok_s_ratio:.3f} of the tokens/s ({spread}), {report.ttft_more_ms:+.1f} ms of TTFT"
    return Group(title, table, f"{report.other.name} against {report.base.name}: {said}")


def soak_table(report: SoakReport) -> Group:
    """`bench soak` for people."""
    title = (
        f"{report.model}: {report.num_clients} clients, {report.seconds / 60:g} minutes, seed {report.seed}"
    )
    table = Table("figure", "value")
    table.add_row("done", ", ".join(f"{count} x {kind}" for kind, count in sorted(report.requests.items())))
    table.add_row("ended well", str(report.num_ok))
    table.add_row("left before the end", str(report.num_left))
    table.add_row("asked to come later (429)", str(report.num_refused))
    table.add_row("tokens generated", str(report.generated_tokens))
    table.add_row("errors", str(sum(report.errors.values())))
    table.add_row(
        "requests, KV blocks, sockets left",
        f"{report.requests_held}, {report.blocks_held}, {report.sockets_left}",
    )
    memory = _number(report.rss_warm_mb, "{:.1f} MB") + " to " + _number(report.rss_end_mb, "{:.1f} MB")
    slope = _number(report.rss_slope_mb_h, ", {:+.1f} MB an hour")
    table.add_row("memory after the warm-up", f"{memory}{_number(report.rss_growth, ' ({:+.2%})')}{slope}")
    errors = [f"{count} x {kind}" for kind, count in report.errors.items()]
    verdict = f"FAILED: {'; '.join(report.failures)}" if report.failures else "held"
    return Group(title, table, *map(escape, (*errors, *report.log_errors[:20])), verdict)


def generate_table(report: GenerateReport) -> Group:
    """`bench generate` for people."""
    title = f"{report.model}: {report.workload}, draft {report.draft}"
    table = Table("request", "prompt", "output", "TTFT ms", "tokens/s", "tokens/step", "sha256")
    for number, request in enumerate(report.requests, 1):
        table.add_row(str(number), *_generate_cells(request))
    table.add_section()
    table.add_row("all", *_generate_cells(report))
    return Group(title, table)


def _generate_cells(figures: RequestFigures | GenerateReport) -> list[str]:
    return [
        str(figures.prompt_tokens),
        str(figures.completion_tokens),
        _number(figures.ttft_ms, "{:.0f}"),
        _number(figures.tok_s, "{:.1f}"),
        _number(figures.acceptance_length, "{:.2f}"),
        figures.output_sha256[:12],
    ]


def drafts_table(report: DraftReport) -> Group:
    """`bench drafts` for people."""
    how = "as the workload says" if report.temperature is None else f"{report.temperature:g}"
    title = (
        f"{report.model}: drafts off and on, {report.rounds} rounds, {report.concurrency} requests at once, "
        f"temperature {how}; drafting takes {report.draft_us:.0f} µs a step"
    )
    table = Table("workload", "tokens", "tokens/s off", "on", "ratio", "tokens/step")
    accepted: list[str] = []
    for each in report.workloads:
        table.add_row(
            each.workload,
            str(each.completion_tokens),
            f"{each.tok_s['off']:.1f}",
            f"{each.tok_s['on']:.1f}",
            f"{each.ratio:.2f}x",
            f"{each.tokens_per_step:.2f}",
        )
        drafts = ", ".join(f"{who} {counts[1]} of {counts[0]}" for who, counts in each.drafts.items())
        accepted.append(f"{each.workload}, accepted: {drafts or 'nothing was drafted'}")
    return Group(title, table, *accepted)


def speculation_table(report: SpeculationReport) -> Group:
    """`bench speculation` for people: tokens/s, and how many times as fast Outpace with drafts is."""
    title = f"{report.model}: decode tokens/s; in brackets, Outpace with drafts over it"
    others = list(report.workloads[0].ratio) if report.workloads else []
    table = Table("workload", "drafts", *others)
    for each in report.workloads:
        speed = each.tok_s["on"]
        cells = [f"{speed / ratio if ratio else 0.0:.1f} ({ratio:.2f}x)" for ratio in each.ratio.values()]
        table.add_row(each.workload, f"{speed:.1f}", *cells)
    return Group(title, table)


def peer_table(report: PeerReport) -> Group:
    """`bench peer` for people. A ratio above 1: Outpace is faster."""
    title = f"{report.model}: {report.workload}, {report.threads} threads, median of {report.rounds} rounds"
    table = Table("figure", "Outpace", "llama.cpp", "ratio")
    columns = [_peer_rows(figures) for figures in (report.outpace, report.peer, report.ratio)]
    for (name, form, ours), (_, _, theirs), (_, _, ratio) in zip(*columns, strict=True):
        table.add_row(name, form.format(ours), form.format(theirs), f"{ratio:.2f}")
    return Group(title, table)


def peer_builds(report: PeerReport) -> str:
    """Both builds, a line each."""
    ours = ", ".join(f"{name} {value}" for name, value in report.outpace_build.items())
    theirs = ", ".join(f"{name} {value}" for name, value in report.peer_build.items())
    return (
        f"Outpace: {ours}; loaded in {report.outpace_load_s:.2f} s\n"
        f"llama.cpp: {theirs}; loaded in {report.peer_load_s:.2f} s\n"
        f"equal tokens before the first difference: {report.equal_tokens:.0%}"
    )


def _peer_rows(figures: Figures) -> list[tuple[str, str, float]]:
    """(name, format, value) of each figure."""
    return [
        ("decode", "{:.1f} tokens/s", figures.decode_tok_s),
        ("TTFT", "{:.0f} ms", figures.ttft_ms),
        *((f"step, rows {rows}", "{:.2f} ms", value) for rows, value in figures.step_ms.items()),
        *((f"prefill {length}", "{:.0f} tokens/s", value) for length, value in figures.prefill_tok_s.items()),
        *(
            (f"decode, context {context}", "{:.1f} tokens/s", value)
            for context, value in figures.context_decode.items()
        ),
    ]


def roofline_tables(report: RooflineReport) -> Group:
    """`bench roofline` for people: a table for each step."""
    limits = report.limits
    dots = limits.peak_gmac_s / limits.clock_ghz / report.threads
    title = (
        f"{report.model}: {report.isa}, {report.threads} threads\n"
        f"limits: {limits.bandwidth_gb_s:.1f} GB/s, {limits.peak_gmac_s:.0f} int8 GMAC/s "
        f"({dots:.0f} a cycle and core at {limits.clock_ghz:.2f} GHz)\n"
        f"cycles: for 16 outputs x 32 inputs and a row, of one core; {GROUP_MACS / dots:.1f} at the peak\n"
        "in cache: those of the kernels alone, where nothing has to be fetched"
    )
    return Group(title, *(_roofline_table(step) for step in report.steps))


def _roofline_table(step: StepFigures) -> Table:
    title = f"{step.rows} rows after {step.context} tokens"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("operation")
    for name in ("ms", "MB", "GB/s", "GMAC", "of the limit", "cycles", "in cache"):
        table.add_column(name, justify="right")
    for op in step.ops:
        table.add_row(*_roofline_cells(op))
    table.add_section()
    num_bytes, num_macs = sum(op.num_bytes for op in step.ops), sum(op.num_macs for op in step.ops)
    table.add_row(
        "all",
        f"{step.ms:.3f}",
        f"{num_bytes / 1e6:.1f}",
        f"{num_bytes / step.ms / 1e6:.1f}",
        f"{num_macs / 1e9:.3f}",
        f"{step.limit_ms / step.ms:.0%} of {step.limit_ms:.4g}",
        f"{step.to_win:.2f}x",
    )
    return table


def _roofline_cells(op: OpFigures) -> list[str]:
    return [
        op.op,
        f"{op.ms:.3f}",
        f"{op.num_bytes / 1e6:.1f}" if op.num_bytes else "",
        f"{op.gb_s:.1f}" if op.num_bytes else "",
        f"{op.num_macs / 1e9:.3f}" if op.num_macs else "",
        f"{op.share:.0%} {op.bound}" if op.share is not None else "",
        _number(op.cycles_per_group, "{:.1f}") if op.num_macs else "",
        "" if op.cycles_in_cache is None else f"{op.cycles_in_cache:.1f}",
    ]


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else form.format(value)
