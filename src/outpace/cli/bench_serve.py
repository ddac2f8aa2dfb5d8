"""`outpace bench serve`: a server as its clients see it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

LOAD_PANEL = "Load"


def serve(
    url: Annotated[
        str, typer.Option(help="The server's address, with /v1.", envvar="OPENAI_BASE_URL")
    ] = "http://127.0.0.1:8000/v1",
    *,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Its model; default: the first that it lists.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Its key.")] = None,
    workload: Annotated[
        str,
        typer.Option(help="A file of JSON lines, or a shipped one: chat, write_code, agent_session, ..."),
    ] = "chat",
    trace: Annotated[
        str | None,
        typer.Option(
            help="Instead: what `outpace bench record` recorded, a file or a shipped one: "
            "aider, claude_code, codex, mini_swe_agent, opencode, qwen_code.",
            rich_help_panel=LOAD_PANEL,
        ),
    ] = None,
    think: Annotated[
        float,
        typer.Option(min=0, help="Of a trace's pauses, the share that is kept.", rich_help_panel=LOAD_PANEL),
    ] = 0.0,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many; default: the workload once, or once each.", rich_help_panel=LOAD_PANEL
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, help="Requests at once.", rich_help_panel=LOAD_PANEL)
    ] = 1,
    rate: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            help="Instead: requests a second, at random times (Poisson).",
            rich_help_panel=LOAD_PANEL,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of those times.", rich_help_panel=LOAD_PANEL)] = 0,
    warmup: Annotated[
        int, typer.Option(min=0, help="Requests before, not counted.", rich_help_panel=LOAD_PANEL)
    ] = 1,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest answer; default: as the workload says.", rich_help_panel=LOAD_PANEL
        ),
    ] = None,
    ttft_ms: Annotated[
        float | None, typer.Option(min=0, help="Goodput: the longest TTFT of a good answer.")
    ] = None,
    tpot_ms: Annotated[float | None, typer.Option(min=0, help="Goodput: the longest TPOT.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON, on the last line.")
    ] = False,
) -> None:
    """Measure a running server of any make: Outpace, llama.cpp, Ollama, vLLM.

    TTFT: from sending a request to the first piece of its answer. E2E: to its end. TPOT: (last piece - first
    piece) / (output tokens - 1). ITL: the gaps between pieces. Total tokens/s: all output tokens over the
    time of all requests. Goodput: whole answers a second that keep to --ttft-ms and --tpot-ms.

    Tokens are those that the server counts (stream_options.include_usage); where it does not, a piece counts
    as a token, and the report says so.

    A trace is asked again in its order, as many requests at once as there were: one starts when those that
    had ended before it have ended. Answers are as long as the recorded ones at most.
    """
    from outpace.bench import report
    from outpace.bench.serve import Limits, Load, bench_serve
    from outpace.bench.trace import read_trace
    from outpace.bench.workload import load as load_workload

    asked = [] if trace else load_workload(workload)
    exchanges = read_trace(trace) if trace else []
    if others := sum(not exchange.generates for exchange in exchanges):
        print(
            f"{others} of {len(exchanges)} exchanges are not asked again: no whole answers", file=sys.stderr
        )
    num_asked = len(asked) + sum(exchange.generates for exchange in exchanges)
    load = Load(
        num_requests=num_asked if trace else requests or max(num_asked, concurrency),
        concurrency=concurrency,
        rate=rate,
        num_warmup=0 if trace else warmup,
        max_tokens=max_tokens,
        seed=seed,
        think=think,
    )
    result = bench_serve(
        url,
        asked,
        load,
        model=model,
        trace=exchanges,
        workload=trace or workload,
        api_key=api_key,
        limits=Limits(ttft_ms, tpot_ms),
        on_request=lambda number, timing: print(
            f"{number + 1}/{load.num_requests}: {timing.error or f'{timing.end:.2f} s'}", file=sys.stderr
        ),
    )
    if as_json:
        print(report.as_json(result))
    else:
        from rich.console import Console

        Console().print(report.serve_table(result))
    if not result.num_whole:
        raise typer.Exit(1)
