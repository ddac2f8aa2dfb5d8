"""`outpace bench overhead`: what the server takes, and what many tools do."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer


def overhead(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- SERVE OPTIONS]", help="For outpace serve, e.g. -- --stream-interval-ms 0"
        ),
    ] = None,
    *,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model's short name, path or repository.")
    ] = None,
    tools: Annotated[
        int | None,
        typer.Option(min=2, help="Instead: a call with so many tools to choose from against one with one."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of answers; figures are medians.")] = 6,
    max_tokens: Annotated[int, typer.Option(min=8, help="Longest answer.")] = 256,
    draft: Annotated[Literal["off", "auto"], typer.Option(help="Drafts, on both sides.")] = "off",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON, on the last line.")
    ] = False,
) -> None:
    """What the server adds: one stream of the engine alone and through the server, in turns.

    TTFT is from handing over the conversation to its first text, template and tokenization included, on
    both sides; tokens/s are (output tokens - 1) / (last piece - first piece). The client is a socket of
    this program, on the same cores. With --tools, one call through the server instead: with so many tools
    to choose from, and with one and text to make the prompt as long; the requests that read the prompts do
    not count.
    """
    from outpace.bench import report
    from outpace.bench.overhead import Pairs, bench_engine_overhead, bench_tool_overhead
    from outpace.models.hub import DEFAULT_MODEL

    name, options = model or DEFAULT_MODEL, arguments or ()
    pairs = Pairs(rounds, max_tokens, draft, _say)
    if tools is None:
        result = bench_engine_overhead(name, pairs, options)
    else:
        result = bench_tool_overhead(name, tools, pairs, options)
    if as_json:
        print(report.as_json(result))
    else:
        from rich.console import Console

        Console().print(report.overhead_table(result))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
