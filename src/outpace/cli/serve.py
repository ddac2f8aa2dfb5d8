"""`outpace serve`: a model behind the OpenAI and the Anthropic API over HTTP."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outpace.cli.config_file import describe_config, use_config_file
from outpace.cli.loading import download_progress, open_llm
from outpace.cli.options import EngineFlags, flatten, parse_size
from outpace.config import available_memory, prefix_cache_bytes
from outpace.errors import InvalidParameterError, UsageError
from outpace.models import hub
from outpace.models.hub import DEFAULT_MODEL

if TYPE_CHECKING:
    from outpace.server.keys import KeyFile
    from outpace.server.model_pool import ModelSource

SERVER_PANEL = "Server"


@flatten
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's short name, path or repository.")] = DEFAULT_MODEL,
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER_PANEL)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0: any free one.", rich_help_panel=SERVER_PANEL)
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="OUTPACE_API_KEY",
            help="Ask clients for this key. The environment is the safer place: arguments show in ps.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Let in the keys of this file, which `outpace keys add NAME --file FILE` makes.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    allow_open: Annotated[
        bool,
        typer.Option(
            "--allow-open",
            help="Serve other machines (--host) without asking for a key.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let this site's pages use the server, e.g. https://chat.example; may be repeated.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Speak TLS with this certificate (PEM, with its chain).",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The certificate's key, if it is in a file of its own.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(help="The model's name for clients; default: its own.", rich_help_panel=SERVER_PANEL),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=MODEL]",
            help="A further name of the first model, or of MODEL; may be repeated. claude-* are the first.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Serve this model too, loaded when a request names it; may be repeated.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=parse_size,
            help="What all loaded models may take, KV caches included; default: the memory that is free.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    keep_alive: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long a model of --also stays loaded without requests: seconds, 5m, 1h30m; -1: always.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = "5m",
    canonicalize: Annotated[
        bool,
        typer.Option(
            help="Move what changes between an agent's sessions (folder, date, commits) behind its system "
            "prompt and tools, so that these stay in the prefix cache.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = True,
    prefix_rules: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Further rules for that: TOML of [[rule]] with name, pattern (a regular expression), action "
            "(drop or move) and place (system, the default: the system prompt; or reminder).",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    max_body: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=parse_size,
            help="Longest request body; default: 32MiB.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    head_timeout: Annotated[
        float,
        typer.Option(
            min=0.1, help="Seconds that a request's head may take to come.", rich_help_panel=SERVER_PANEL
        ),
    ] = 20.0,
    read_timeout: Annotated[
        float,
        typer.Option(
            min=0.1, help="Seconds that a request's body may take to come.", rich_help_panel=SERVER_PANEL
        ),
    ] = 30.0,
    request_timeout: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds that an answer may take in all; 0: any.", rich_help_panel=SERVER_PANEL
        ),
    ] = 3600.0,
    stream_interval_ms: Annotated[
        float,
        typer.Option(
            min=0,
            max=1000,
            help="Milliseconds between a stream's events: tokens that come faster share one. 0: an event for "
            "each step.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = 16.0,
    sampling: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="What holds for requests that do not say: temperature, top_k, top_p, min_p, "
            "repetition_penalty, presence_penalty, frequency_penalty; may be repeated. temperature=0 helps "
            "small models to call tools.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    constrain_tools: Annotated[
        bool,
        typer.Option(
            "--constrain-tools/--no-constrain-tools",
            help="Hold every call to its tool's schema, also where the client does not ask for it (strict).",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = False,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Requests in a minute for each key that `outpace keys add` gave no limit; without keys, for "
            "all clients together.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The same of tokens, those read from the cache not counted.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    max_concurrent: Annotated[
        int | None,
        typer.Option(min=1, help="The same of requests at once.", rich_help_panel=SERVER_PANEL),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            max=3600,
            help="Seconds that running requests get to finish at shutdown.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = 3.0,
    config: Annotated[  # noqa: ARG001 - its callback reads it
        Path | None,
        typer.Option(
            envvar="OUTPACE_CONFIG",
            metavar="FILE",
            is_eager=True,
            callback=use_config_file,
            help="Options from this TOML file, by their long names; default: ~/.config/outpace/serve.toml.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Show the options as such a file, with where each comes from, and end.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = False,
    engine: EngineFlags,
) -> None:
    """Serve a model over HTTP until Ctrl-C or SIGTERM.

    The OpenAI and the Anthropic API are under /v1; /health and /metrics are for operators. Only this
    machine can reach it unless --host says otherwise, and then a key is needed.

    The command line goes before the environment, and that before the file of --config.
    """
    if print_config:
        typer.echo(describe_config(context))
        return
    from outpace.server.keys import KeyFile
    from outpace.server.limits import KeyLimits
    from outpace.server.prefix_rules import KNOWN_RULES, read_rules
    from outpace.server.run import listen, serve, url_of
    from outpace.server.settings import DEFAULT_MAX_BODY_BYTES, ServerSettings

    settings = ServerSettings(
        host=host,
        port=port,
        api_key=_clean_key(api_key),
        api_keys=None if api_keys is None else _some(KeyFile(api_keys), api_keys),
        allow_open=allow_open,
        cors_origins=tuple(cors_origin or ()),
        tls_cert=tls_cert,
        tls_key=tls_key,
        max_body_bytes=DEFAULT_MAX_BODY_BYTES if max_body is None else max_body,
        head_timeout=head_timeout,
        read_timeout=read_timeout,
        request_timeout=request_timeout,
        sampling=dict(_sampling(text) for text in sampling or ()),
        constrain_tools=constrain_tools,
        stream_interval=stream_interval_ms / 1000,
        limits=KeyLimits(requests_per_minute, tokens_per_minute, max_concurrent),
        shutdown_grace=grace,
        memory_bytes=available_memory() if memory is None else memory,
        keep_alive=_keep_alive(keep_alive),
        aliases=dict(_alias(text) for text in alias or ()),
        prefix_rules=(
            (*KNOWN_RULES, *(read_rules(prefix_rules) if prefix_rules else ())) if canonicalize else ()
        ),
    )
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    # The port first: finding it in use after a long load would be a waste.
    with listen(settings) as listener:
        if not settings.is_loopback and not settings.has_keys:
            typer.echo(f"warning: anyone who can reach {host} can use this server (--allow-open)", err=True)
        if engine.prefix_cache_disk_bytes is None:
            engine = replace(engine, prefix_cache_disk_bytes=prefix_cache_bytes())
        others = _sources(also or (), engine)
        with open_llm(model, engine) as llm:
            url = url_of(listener, tls=settings.tls_cert is not None)

            def tell_ready(name: str) -> None:
                typer.echo(_welcome(url, name, has_key=settings.has_keys))
                sys.stdout.flush()

            serve(
                llm,
                settings,
                listener,
                model_name=served_model_name,
                others=others,
                on_ready=tell_ready,
            )
    typer.echo("stopped", err=True)


def _some(keys: KeyFile, path: Path) -> KeyFile:
    """The keys. Raises `UsageError` where there are none: nobody could come in, or everybody."""
    if not keys():
        raise UsageError(f"--api-keys {path}: there are no keys in it; outpace keys add NAME makes one")
    return keys


def _keep_alive(text: str) -> float:
    from outpace.server.keep_alive import parse_keep_alive

    try:
        return parse_keep_alive(text)
    except ValueError as error:
        raise UsageError(f"--keep-alive: {error}") from None


def _sources(models: Sequence[str], engine: EngineFlags) -> list[ModelSource]:
    """Models that requests load, each brought to this machine and its header checked.

    A draft model or head fits one model, so these have none.
    """
    from outpace.llm import footprint_of
    from outpace.server.model_pool import ModelSource
    from outpace.server.served import short_name

    options = replace(engine, draft_model=None, draft_head=None).as_config()
    sources: list[ModelSource] = []
    for model in models:
        with download_progress(model) as report:
            hub.resolve(model, progress=report)
        sources.append(ModelSource(short_name(model), model, options, footprint_of(model, options)))
    return sources


def _sampling(text: str) -> tuple[str, float]:
    """A sampling parameter and its default. Raises `UsageError`."""
    from outpace.engine.sampling import validate
    from outpace.server.settings import SAMPLING_DEFAULTS
    from outpace.types import SamplingParams

    name, _, value = (part.strip() for part in text.partition("="))
    if name not in SAMPLING_DEFAULTS:
        raise UsageError(f"--sampling {text}: write NAME=VALUE with one of {', '.join(SAMPLING_DEFAULTS)}")
    try:
        number = int(value) if name == "top_k" else float(value)
        validate(replace(SamplingParams(), **{name: number}), vocab_size=1 << 30)
    except (ValueError, InvalidParameterError) as error:
        raise UsageError(f"--sampling {text}: {error}") from None
    return name, number


def _alias(text: str) -> tuple[str, str | None]:
    """A name and the model that it means, None for the one that is loaded. Raises `UsageError`."""
    name, equals, model = (part.strip() for part in text.partition("="))
    if not name or (equals and not model):
        raise UsageError(f"--alias {text}: write NAME or NAME=MODEL")
    return name, model or None


def _clean_key(api_key: str | None) -> str | None:
    """The key, or None where none is set. Raises `UsageError` for one that no header can carry."""
    if api_key is None or not api_key.strip():
        return None
    key = api_key.strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError("--api-key: only printable ASCII characters can be sent in a header")
    return key


def _welcome(url: str, model: str, *, has_key: bool) -> str:
    authorization = ' -H "Authorization: Bearer $OUTPACE_API_KEY"' if has_key else ""
    return (
        f"serving {model} at {url}/v1 (Ctrl-C stops)\n"
        f"try: curl {url}/v1/chat/completions -H 'Content-Type: application/json'{authorization} "
        """-d '{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 100}'"""
    )
