"""`outpace keys`: the API keys that a server lets in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from outpace.config import keys_file

app = typer.Typer(no_args_is_help=True)

KeysFile = Annotated[
    Path | None,
    typer.Option("--file", help="The file of keys; default: api-keys.json in Outpace's settings folder."),
]
KeyName = Annotated[str, typer.Argument(help="The key's name: whose it is.")]


@app.command("add")
def add(
    name: KeyName,
    *,
    file: KeysFile = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Requests in a minute; default: what the server says.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Tokens in a minute, those read from the cache not counted.")
    ] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
) -> None:
    """Make a key and show it, once: the file keeps its hash only.

    A server lets it in: outpace serve --api-keys FILE; one that runs knows it a second later.
    """
    from outpace.server.keys import add_key
    from outpace.server.limits import KeyLimits

    path = file or keys_file()
    key = add_key(path, name, KeyLimits(requests_per_minute, tokens_per_minute, max_concurrent))
    typer.echo(key)
    typer.echo(f"kept in {path} as a hash; this key is not shown again", err=True)


@app.command("list")
def list_(*, file: KeysFile = None) -> None:
    """List the keys' names, when they were made, and their limits."""
    from outpace.server.keys import read_keys

    for key in read_keys(file or keys_file()):
        limits = {name: value for name, value in asdict(key.limits).items() if value is not None}
        told = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in limits.items())
        typer.echo("\t".join(filter(None, (key.name, key.created, told))))


@app.command("rm")
def rm(name: KeyName, *, file: KeysFile = None) -> None:
    """Remove a key. A running server lets it in for a second more; what it answers then, it ends."""
    from outpace.server.keys import remove_key

    remove_key(file or keys_file(), name)
