"""`outpace doctor`: whether a server speaks as coding agents need it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from outpace.cli.launch import DEFAULT_URL, KeyOption, ServedModelOption, UrlOption, find_target
from outpace.clients.doctor import examine
from outpace.clients.http import Server


def doctor(
    *,
    url: UrlOption = DEFAULT_URL,
    model: ServedModelOption = None,
    api_key: KeyOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array instead of lines.")] = False,
) -> None:
    """Check a server, Outpace's or another, for all that coding agents ask of one.

    Each check is a small request of a client's kind. The exit code is 1 where one fails.
    """
    target = find_target(url, model, api_key)
    findings = list(examine(Server(target.url, target.api_key), target.model))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        typer.echo(f"{target.url}: {target.model}, {target.max_context} tokens of context")
        for finding in findings:
            mark = "FAILS" if finding.problem else "ok   "
            typer.echo(f"{mark} {finding.name} ({finding.needed_by})")
            if finding.problem:
                typer.echo(f"      {finding.problem}")
    if any(finding.problem for finding in findings):
        raise typer.Exit(1)
