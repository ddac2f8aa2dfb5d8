"""`outpace bench soak`: whether a server holds for hours."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def soak(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- SERVE OPTIONS]", help="For outpace serve, e.g. -- --draft off"),
    ] = None,
    *,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model's short name, path or repository.")
    ] = None,
    clients: Annotated[int, typer.Option("--clients", "-c", min=1, help="Clients at once.")] = 50,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long.")] = 30.0,
    warmup: Annotated[
        float, typer.Option(min=0, max=0.9, help="The share of that in which memory may still grow.")
    ] = 0.2,
    max_growth: Annotated[
        float, typer.Option(min=0, help="What memory may grow by afterwards, in percent.")
    ] = 2.0,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that an answer may take; more is a hang.")
    ] = 300.0,
    pause: Annotated[float, typer.Option(min=0.001, help="Mean seconds between what a client does.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of all that clients do.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON, on the last line.")
    ] = False,
) -> None:
    """Start a server, let many clients do what they like to it, and see whether it holds.

    They ask in every dialect, streamed or not, with tools and schemas; leave while their prompt is read or
    their answer comes; send bad JSON, wrong values, bodies and prompts that are too long, half a request; and
    repeat questions whose answers must not change. Ends with 1 where the server erred, an answer changed,
    a KV block, request or socket is left when all have gone, or its memory grew after the warm-up.

    Caches are kept small, so that they are full by the end of the warm-up; options after -- go before that.
    """
    from outpace.bench import report
    from outpace.bench.soak import Soak, bench_soak
    from outpace.models.hub import DEFAULT_MODEL

    seconds = 60 * minutes
    result = bench_soak(
        model or DEFAULT_MODEL,
        Soak(
            num_clients=clients,
            seconds=seconds,
            warmup=warmup * seconds,
            max_growth=max_growth / 100,
            timeout=timeout,
            pause=pause,
            seed=seed,
        ),
        arguments or (),
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if as_json:
        print(report.as_json(result))
    else:
        from rich.console import Console

        Console().print(report.soak_table(result))
    if result.failures:
        raise typer.Exit(1)
