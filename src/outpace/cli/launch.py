"""`outpace launch`: a coding agent that uses the server here."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import Annotated

import typer

from outpace.clients.catalog import CLIENTS, Target
from outpace.clients.http import Server, ServerError
from outpace.config import child_environment
from outpace.errors import UsageError

DEFAULT_URL = "http://127.0.0.1:8000"

UrlOption = Annotated[str, typer.Option("--url", help="Where the server is.")]
ServedModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Its name on the server; default: the first there.")
]
KeyOption = Annotated[
    str, typer.Option(envvar="OUTPACE_API_KEY", help="The key that the server asks for.", show_default=False)
]


def launch(
    client: Annotated[
        str | None,
        typer.Argument(help=f"One of: {', '.join(CLIENTS)}.", show_default=False),
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(help="For the client; put -- before those with a dash.")
    ] = None,
    *,
    url: UrlOption = DEFAULT_URL,
    model: ServedModelOption = None,
    api_key: KeyOption = "",
    show: Annotated[bool, typer.Option("--show", help="Only print the command.")] = False,
) -> None:
    """Start a coding agent with the settings that point it to the server, for instance

    outpace launch claude -- -p "What does this project do?"

    The server must run (`outpace serve MODEL`). Without a name, list the agents.
    """
    if client is None:
        for each in CLIENTS.values():
            here = shutil.which(each.program) or f"not installed: {each.install}"
            typer.echo(f"{each.name:9} {each.about:15} {here}")
        return
    known = CLIENTS.get(client)
    if known is None:
        raise UsageError(f"no client {client!r}; there are: {', '.join(CLIENTS)}")
    program = shutil.which(known.program)
    if program is None and not show:
        raise UsageError(f"{known.about} is not installed here: {known.install}")
    setup = known.setup(find_target(url, model, api_key))
    command = [program or known.program, *setup.arguments, *(arguments or ())]
    if show:
        settings = [f"{name}={shlex.quote(value)}" for name, value in setup.environment.items()]
        typer.echo(" ".join([*settings, shlex.join(command)]))
        return
    os.execvpe(command[0], command, child_environment(**setup.environment))  # noqa: S606 - its purpose


def find_target(url: str, model: str | None, api_key: str) -> Target:
    """The server's model to use. Raises `ServerError` where there is no server, or not this model."""
    server = Server(url, api_key)
    models = server.listed("/v1/models", "data", "id")
    chosen = next((each for each in models if model in {None, each["id"]}), None)
    if chosen is None:
        names = ", ".join(each["id"] for each in models)
        raise ServerError(f"{url} has no model {model!r}; it has: {names}")
    context = int(chosen.get("max_model_len") or 8192)
    return Target(server.url, chosen["id"], server.api_key, context)
