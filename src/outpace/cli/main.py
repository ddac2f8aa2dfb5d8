"""The `outpace` program: finds the verb, runs it, and turns errors into one clear line and an exit code.

Only the verb that was asked for is imported, so that `outpace --help` stays quick.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from outpace.cli.collector import paused_collector
from outpace.disk import is_disk_full
from outpace.errors import OutpaceError

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
INTERNAL_ERROR = 1


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb lives: a function, or a `typer.Typer` for one with verbs of its own."""

    name: str
    module: str
    attribute: str
    help: str


VERBS = (
    Verb("run", "outpace.cli.run", "run", "Answer one prompt, streaming."),
    Verb("chat", "outpace.cli.chat", "chat", "Talk with a model."),
    Verb("serve", "outpace.cli.serve", "serve", "Serve the APIs of OpenAI, Anthropic and Ollama."),
    Verb("keys", "outpace.cli.keys", "app", "Make and remove the API keys of servers."),
    Verb("ps", "outpace.cli.ps", "ps", "Show the models that a server has loaded."),
    Verb("stop", "outpace.cli.ps", "stop", "Have a server unload a model."),
    Verb("launch", "outpace.cli.launch", "launch", "Start a coding agent that uses the server."),
    Verb("doctor", "outpace.cli.doctor", "doctor", "Check a server for what coding agents need."),
    Verb("pull", "outpace.cli.pull", "pull", "Bring a model to this machine."),
    Verb("list", "outpace.cli.list", "list_", "List the models on this machine."),
    Verb("show", "outpace.cli.show", "show", "Show what a model file holds."),
    Verb("rm", "outpace.cli.rm", "rm", "Remove a model from this machine."),
    Verb("bench", "outpace.cli.bench", "bench", "Measure: one step, a workload, or against a peer."),
)


def main(argv: Sequence[str] | None = None, verbs: Sequence[Verb] = VERBS) -> None:
    """Run the command line and exit; `argv` is without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = _take_debug(arguments)
    _open_closed_streams()
    _tolerate_odd_characters(sys.stdout, sys.stderr)
    verb = next((argument for argument in arguments if not argument.startswith("-")), None)
    try:
        with paused_collector():
            app = build_app(verb, verbs, debug=debug)
        app(arguments, prog_name="outpace")
    except KeyboardInterrupt:  # before or after the verb itself
        sys.exit(INTERRUPTED)
    except Exception as error:  # a verb that cannot be loaded, for instance
        sys.exit(_report(error, debug=debug))


def build_app(wanted: str | None, verbs: Sequence[Verb] = VERBS, *, debug: bool = False) -> typer.Typer:
    """The typer application. Only the verb `wanted` is loaded; the others are names with a line of help."""
    app = typer.Typer(
        name="outpace",
        help="A speed-first LLM inference engine. Speed never changes an answer.",
        epilog="Add --debug to any command for the traceback of an error.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for verb in verbs:
        if verb.name == wanted:
            _add(app, verb, debug=debug)
        else:
            app.command(verb.name, help=verb.help)(_unloaded)
    return app


def _add(app: typer.Typer, verb: Verb, *, debug: bool) -> None:
    loaded: Any = getattr(importlib.import_module(verb.module), verb.attribute)
    if not isinstance(loaded, typer.Typer):
        app.command(verb.name)(_report_errors(loaded, debug=debug))
        return
    for command in loaded.registered_commands:
        if command.callback is not None:
            command.callback = _report_errors(command.callback, debug=debug)
    app.add_typer(loaded, name=verb.name, help=verb.help)


def _show_version(wanted: bool) -> None:
    if wanted:
        from outpace import __version__

        typer.echo(f"outpace {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """The options before the verb; `--version` ends the program by itself."""


def _unloaded() -> None:
    """Stands for a verb in the list of verbs; never called, as the verb that is called is loaded."""
    raise AssertionError


def _report_errors(verb: Callable[..., None], *, debug: bool) -> Callable[..., None]:
    """Wrap a verb: what it raises becomes a line on stderr and an exit code."""

    @wraps(verb)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _stop_writing()
            raise typer.Exit(INTERNAL_ERROR) from None
        except Exception as error:
            if isinstance(error, OSError) and is_disk_full(error):
                _stop_writing()
            raise typer.Exit(_report(error, debug=debug)) from None

    return call


def _report(error: Exception, *, debug: bool) -> int:
    """Tell the user what went wrong; returns the exit code."""
    if debug:
        traceback.print_exception(error)
    else:
        typer.echo(_one_line(error), err=True)
    return error.exit_code if isinstance(error, OutpaceError) else INTERNAL_ERROR


def _one_line(error: Exception) -> str:
    if isinstance(error, OutpaceError):
        return f"outpace: error: {error}"
    if isinstance(error, OSError) and is_disk_full(error):
        return f"outpace: error: {error.filename or 'the output'} cannot be written: {error.strerror}"
    return (
        f"outpace: internal error: {type(error).__name__}: {error} "
        "(a defect; add --debug for the traceback to report)"
    )


def _take_debug(arguments: list[str]) -> bool:
    """Take `--debug` out of the arguments, wherever it stands before a `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found = "--debug" in arguments[:end]
    if found:
        arguments[:end] = [argument for argument in arguments[:end] if argument != "--debug"]
    return found


def _open_closed_streams() -> None:
    """A program that was started with closed streams (`>&-`) reads nothing there and writes nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def _tolerate_odd_characters(*streams: TextIO) -> None:
    """A terminal that cannot show a character gets a `?`, not a traceback."""
    for stream in streams:
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def _stop_writing() -> None:
    """The reader has gone (`outpace run ... | head`): nothing more may be flushed at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
