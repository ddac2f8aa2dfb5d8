"""`outpace bench`: a step, its parts, a workload, a peer. With --json the last line is the report."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outpace.cli.bench_overhead import overhead
from outpace.cli.bench_record import record
from outpace.cli.bench_serve import serve
from outpace.cli.bench_soak import soak
from outpace.cli.loading import download_progress, open_llm
from outpace.cli.options import EngineFlags, flatten
from outpace.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Group

bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@bench.callback()
def measure() -> None:
    """Measure: one step, a workload, or against a peer."""

    # As Ctrl-C: what was started for a measurement (servers, peers) ends with it.
    def end(number: int, _: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come to the group too, amid the ending
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


ModelFlag = Annotated[
    str | None, typer.Option("--model", "-m", help="A model's short name, path or repository.")
]
WorkloadFlag = Annotated[
    str,
    typer.Option(
        help="A file of JSON lines, or one of: chat, write_code, edit_file, copy_file, agent_turns, "
        "agent_session, extract_json, adversarial."
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the report as JSON, on the last line.")]


@bench.command("step")
@flatten
def step(model: ModelFlag = None, *, as_json: JsonFlag = False, engine: EngineFlags) -> None:
    """What one step costs by the number of rows, prefill speed, and the share of memory bandwidth used."""
    from outpace.bench import report
    from outpace.bench.step import bench_step

    with open_llm(_or_default(model), _forgetful(engine)) as llm:
        result = bench_step(
            llm.model_name,
            llm.backend,
            max_batch_tokens=llm.config.max_batch_tokens,
            load_seconds=llm.load_seconds,
            close=llm.close,
        )
    _print(report.as_json(result) if as_json else report.step_table(result))


@bench.command("roofline")
@flatten
def roofline(
    model: ModelFlag = None,
    *,
    rows: Annotated[str, typer.Option(help="Rows of the steps, comma separated.")] = "1,8,16,32",
    context: Annotated[int, typer.Option(min=1, help="Tokens in the KV cache before a step.")] = 256,
    as_json: JsonFlag = False,
    engine: EngineFlags,
) -> None:
    """Where a step's time goes, operation by operation, against this machine's limits."""
    from outpace.bench import report
    from outpace.bench.roofline import bench_roofline

    row_counts = _numbers(rows, "--rows")
    with open_llm(_or_default(model), _forgetful(engine)) as llm:
        result = bench_roofline(
            llm.model_name,
            llm.backend,
            row_counts=row_counts,
            context=context,
            max_batch_tokens=llm.config.max_batch_tokens,
            close=llm.close,
        )
    _print(report.as_json(result) if as_json else report.roofline_tables(result))


@bench.command("generate")
@flatten
def generate(
    model: ModelFlag = None,
    *,
    workload: WorkloadFlag = "chat",
    as_json: JsonFlag = False,
    engine: EngineFlags,
) -> None:
    """Run a workload's requests one after the other: TTFT, tokens/s, acceptance length, output hash.

    Requests draft from those before them in the same run; --draft-persist lets them draft from what other
    runs and servers answered too, and keeps theirs.
    """
    from outpace.bench import report
    from outpace.bench.generate import bench_generate
    from outpace.bench.workload import load

    requests = load(workload)
    with open_llm(_or_default(model), _forgetful(engine)) as llm:
        result = bench_generate(
            lambda request: llm.stream(request.messages, request.params),
            requests,
            model=llm.model_name,
            workload=workload,
            draft=llm.config.draft,
            on_request=lambda done: _say(f"{done.completion_tokens} tokens"),
        )
    _print(report.as_json(result) if as_json else report.generate_table(result))


@bench.command("drafts")
@flatten
def drafts(
    model: ModelFlag = None,
    *,
    workload: Annotated[
        str, typer.Option(help="Files of JSON lines or shipped workloads, comma separated.")
    ] = "edit_file,copy_file,agent_session,write_code,chat",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each workload; speeds are medians.")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of all requests; default: as the workload says.")
    ] = None,
    as_json: JsonFlag = False,
    engine: EngineFlags,
) -> None:
    """What drafts gain: each request with drafts off and on, in turns; the tokens must be the same.

    Requests draft from what those before them in the same round said, as they do in use, and from nothing
    older. The prefix cache is off, so that both runs compute their prompts.
    """
    from outpace.bench import report
    from outpace.bench.drafts import bench_drafts
    from outpace.bench.workload import load

    workloads = {name: load(name) for name in workload.split(",")}
    alone = replace(engine, draft="auto", draft_persist=False, prefix_cache=False)
    with open_llm(_or_default(model), alone) as llm:
        result = bench_drafts(
            llm,
            workloads,
            rounds=rounds,
            concurrency=concurrency,
            temperature=temperature,
            on_request=_say,
        )
    _print(report.as_json(result) if as_json else report.drafts_table(result))


@bench.command("peer")
@flatten
def peer(
    model: ModelFlag = None,
    *,
    workload: WorkloadFlag = "chat",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of turns; figures are medians.")] = 3,
    max_tokens: Annotated[int, typer.Option(min=2, help="Longest generation of a request.")] = 64,
    as_json: JsonFlag = False,
    engine: EngineFlags,
) -> None:
    """Compare with llama.cpp on the same GGUF file in the same run, taking turns. Drafts are off here."""
    from outpace.bench import report
    from outpace.bench.peer import bench_peer
    from outpace.bench.workload import load

    requests = load(workload)
    name = _or_default(model)
    path = _gguf(name)
    plain = replace(_forgetful(engine), draft="off", prefix_cache=False)
    with open_llm(name, plain) as llm:
        result = bench_peer(
            llm, path, requests, workload=workload, rounds=rounds, max_tokens=max_tokens, on_turn=_say
        )
    if as_json:
        _print(report.as_json(result))
    else:
        _print(report.peer_table(result))
        _print(report.peer_builds(result))


@bench.command("speculation")
@flatten
def speculation(
    model: ModelFlag = None,
    *,
    workload: Annotated[
        str, typer.Option(help="Files of JSON lines or shipped workloads, comma separated.")
    ] = "edit_file,agent_session,write_code,chat",
    limit: Annotated[int, typer.Option(min=1, help="Requests of each workload, the first ones.")] = 3,
    as_json: JsonFlag = False,
    engine: EngineFlags,
) -> None:
    """Drafts against llama.cpp and OpenVINO, each plain and with its prompt lookup, request by request.

    OpenVINO takes part where it is installed; llama.cpp must be.
    """
    from outpace.bench import report
    from outpace.bench.bandwidth import threads_of
    from outpace.bench.contenders import LlamaCppProcess, OpenVinoProcess
    from outpace.bench.speculation import bench_speculation
    from outpace.bench.workload import load

    workloads = {name: load(name)[:limit] for name in workload.split(",")}
    name = _or_default(model)
    path = _gguf(name)
    alone = replace(engine, draft="auto", draft_persist=False, prefix_cache=False)
    with ExitStack() as stack:
        llm = stack.enter_context(open_llm(name, alone))
        threads = threads_of(llm.backend.description)
        process = stack.enter_context(closing(LlamaCppProcess(path, threads, 4096)))
        openvino: OpenVinoProcess | None = None
        if find_spec("openvino_genai") is not None:
            openvino = stack.enter_context(closing(OpenVinoProcess(path, threads)))
        result = bench_speculation(llm, process, openvino, workloads, on_turn=_say)
    _print(report.as_json(result) if as_json else report.speculation_table(result))


bench.command("serve")(serve)
bench.command("soak")(soak)
bench.command("overhead")(overhead)
bench.command("record")(record)


def _gguf(name: str) -> Path:
    """The model's file, brought if need be. Raises UsageError where llama.cpp cannot read it."""
    from outpace.models.hub import resolve

    with download_progress(name) as progress:
        path = resolve(name, progress=progress)
    if path.suffix != ".gguf":
        raise UsageError(f"{path} is no GGUF file; llama.cpp reads nothing else")
    return path


def _forgetful(engine: EngineFlags) -> EngineFlags:
    """Without what earlier runs and servers said, unless it is asked for: figures must not depend on it."""
    return engine if engine.draft_persist is not None else replace(engine, draft_persist=False)


def _or_default(model: str | None) -> str:
    from outpace.models.hub import DEFAULT_MODEL

    return model or DEFAULT_MODEL


def _numbers(text: str, option: str) -> list[int]:
    """Whole numbers from `1,8,16`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r}: must be whole numbers with commas between") from None


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _print(report: str | Group) -> None:
    """JSON as it is, a table as the terminal can show it."""
    if isinstance(report, str):
        print(report)
        return
    from rich.console import Console

    Console().print(report)
