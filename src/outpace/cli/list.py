"""`outpace list`: the models on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from outpace.models import hub
from outpace.models.transfer import size_text


def list_(
    *,
    available: Annotated[
        bool, typer.Option("--available", help="The short names instead, with what they stand for.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array instead of a table.")] = False,
) -> None:
    """List the models in Outpace's own cache and in the Hugging Face cache."""
    rows = _available() if available else _here()
    if as_json:
        typer.echo(json.dumps(rows))
    elif rows:
        _print_table([{key.upper(): _cell(key, value) for key, value in row.items()} for row in rows])
    else:
        typer.echo(f"no models on this machine yet; bring one: outpace pull {hub.DEFAULT_MODEL}")


def _here() -> list[dict[str, str | int]]:
    return [
        {"name": entry.name, "source": entry.source, "size": entry.num_bytes, "path": str(entry.path)}
        for entry in hub.list_models()
    ]


def _available() -> list[dict[str, str | int]]:
    return [
        {"name": name, "about": entry.about, "source": entry.source} for name, entry in hub.CATALOG.items()
    ]


def _cell(key: str, value: str | int) -> str:
    return size_text(value) if key == "size" and isinstance(value, int) else str(value)


def _print_table(rows: list[dict[str, str]]) -> None:
    header = {key: key for key in rows[0]}
    widths = {key: max(len(row[key]) for row in [header, *rows]) for key in header}
    for row in [header, *rows]:
        typer.echo("  ".join(row[key].ljust(widths[key]) for key in header).rstrip())
