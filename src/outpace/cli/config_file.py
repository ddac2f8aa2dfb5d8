"""Options from a TOML file: what the command line and the environment leave open."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from pathlib import Path
from typing import Any, cast

import typer

from outpace.config import serve_config_file, serve_environment
from outpace.errors import UsageError

_NOT_KEYS = frozenset({"config", "print_config", "help"})
_SECRET = frozenset({"api_key"})
_SOURCES = {
    "COMMANDLINE": "command line",
    "ENVIRONMENT": "environment",
    "DEFAULT_MAP": "file",
}
_FROM_ENVIRONMENT = "outpace.environment"  # in a context's meta: the options that variables of ours set


def use_config_file(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the verb's defaults; `path` None is the default place, if there is a file.

    Variables that are no option's own (`serve_environment`) go before the file. A file with a key in it that
    others may read is used, with a warning. The callback of an eager option. Raises `UsageError` for a file
    that can't be read, is no TOML, or has keys or values that are no option's.
    """
    environment = serve_environment()
    context.meta[_FROM_ENVIRONMENT] = frozenset(environment)
    context.default_map = environment
    found = path or serve_config_file()
    if path is None and not found.exists():
        return None
    try:
        with found.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            values = tomllib.loads(file.read().decode())
    except OSError as error:
        raise UsageError(f"--config {found}: can't be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {found}: this is no TOML: {error}") from None
    options = _options(context)
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        if key not in options:
            near = difflib.get_close_matches(key, options, n=1, cutoff=0)[0]
            raise UsageError(f"{found}: {key!r} is no option of serve; the nearest is {near!r}")
        option = options[key]
        try:
            defaults[option.name] = _text(value, option)
            option.type_cast_value(context, defaults[option.name])  # so that the error names the file
        except typer.BadParameter as error:
            raise UsageError(f"{found}: {key}: {error.message}") from None
    if mode & 0o077 and not _SECRET.isdisjoint(defaults):
        typer.echo(f"warning: {found} has a key in it and is open to others; chmod 600 it", err=True)
    context.default_map = {**defaults, **environment}
    return found


def describe_config(context: typer.Context) -> str:
    """The resolved options as TOML, each with where it comes from; secrets are left out."""
    lines: list[str] = []
    environment: frozenset[str] = context.meta.get(_FROM_ENVIRONMENT, frozenset())
    for key, option in _options(context).items():
        name: str = option.name
        value = context.params[name]
        source = context.get_parameter_source(name)
        where = _SOURCES.get(source.name, "default") if source else "default"
        if where == "file" and name in environment:
            where = "environment"
        if value is None or value == ():
            lines.append(f"# {key}: not set")
        elif name in _SECRET:
            lines.append(f"# {key}: set, not shown ({where})")
        else:
            lines.append(f"{key} = {_toml(value)}  # {where}")
    return "\n".join(lines)


def _options(context: typer.Context) -> dict[str, Any]:
    """The verb's parameters, as click has them, by their keys: the long name without its dashes."""
    options: dict[str, Any] = {}
    for option in cast("list[Any]", context.command.params):
        if option.name not in _NOT_KEYS:
            options[max(option.opts, key=len).lstrip("-")] = option
    return options


def _text(value: object, option: Any) -> object:
    """A value as the command line would have it. Raises `typer.BadParameter` for one that it can't have."""
    multiple: bool = getattr(option, "multiple", False)
    if isinstance(value, list) and multiple:
        return [_text_of_one(item) for item in cast("list[object]", value)]
    if multiple:
        raise typer.BadParameter("a list is needed: [...]")
    if getattr(option, "is_flag", False) != isinstance(value, bool):
        raise typer.BadParameter(
            f"{value!r} will not do; true and false are for switches, and for them alone"
        )
    return value if isinstance(value, bool) else _text_of_one(cast("object", value))


def _text_of_one(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise typer.BadParameter(f"{value!r} is neither text nor a number")
    return str(value)


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in cast("list[object]", value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
