"""`outpace ps` and `outpace stop`: the models that a server has in memory."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, cast

import typer

from outpace.cli.launch import DEFAULT_URL, KeyOption, UrlOption
from outpace.clients.http import Server

_A_YEAR = 365 * 24 * 3600
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def ps(
    *,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array instead of a table.")] = False,
) -> None:
    """Show the models that a server has in memory: size, context, requests, and until when they stay.

    Sizes are those of weights and KV cache together.
    """
    models = Server(url, api_key).listed("/api/ps", "models", "name", "size", "expires_at")
    if as_json:
        typer.echo(json.dumps(models))
        return
    if not models:
        typer.echo("no model is in memory; the next request loads one")
        return
    rows = [("NAME", "SIZE", "CONTEXT", "REQUESTS", "UNTIL"), *(_row(each) for each in models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, *numbers, until in rows:
        columns = (f"{text:>{width}}" for text, width in zip(numbers, widths[1:], strict=False))
        typer.echo("  ".join((f"{name:{widths[0]}}", *columns, until)))


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    size = f"{model['size'] / 1e6:,.0f} MB"
    # What Ollama's own servers do not say is left empty.
    context, running = str(model.get("context_length", "")), str(model.get("running_requests", ""))
    return model["name"], size, context, running, _until(model)


def stop(
    model: Annotated[str, typer.Argument(help="Its name on the server; `outpace ps` shows it.")],
    *,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = "",
) -> None:
    """Have a server unload a model. Running answers are finished first; the next request loads it again."""
    server = Server(url, api_key)
    answer = server.post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
    name: str = cast("dict[str, Any]", answer).get("model", model) if isinstance(answer, dict) else model
    if any(each["name"] == name for each in server.listed("/api/ps", "models", "name")):
        typer.echo(f"{name} goes when its running requests have ended")
    else:
        typer.echo(f"{name} is not in memory any more")


def _until(model: dict[str, Any]) -> str:
    seconds = (datetime.fromisoformat(model["expires_at"]) - datetime.now(UTC)).total_seconds()
    if seconds > _A_YEAR:
        return "it is stopped"
    name, length = next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])
    count = max(0, round(seconds / length))
    return f"{count} {name}{'' if count == 1 else 's'} from now"
