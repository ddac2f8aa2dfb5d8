"""`outpace keys`: the API keys that a server lets in."""

from __future__ import annotations

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
def add(name: KeyName, *, file: KeysFile = None) -> None:
    """Make a key and show it, once: the file keeps its hash only.

    A server reads the file when it starts: outpace serve --api-keys FILE.
    """
    from outpace.server.keys import add_key

    path = file or keys_file()
    key = add_key(path, name)
    typer.echo(key)
    typer.echo(f"kept in {path} as a hash; this key is not shown again", err=True)


@app.command("list")
def list_(*, file: KeysFile = None) -> None:
    """List the keys' names and when they were made."""
    from outpace.server.keys import read_keys

    for key in read_keys(file or keys_file()):
        typer.echo(f"{key.name}\t{key.created}")


@app.command("rm")
def rm(name: KeyName, *, file: KeysFile = None) -> None:
    """Remove a key. A running server knows it until it is restarted."""
    from outpace.server.keys import remove_key

    remove_key(file or keys_file(), name)
