"""`outpace run`: one prompt, one answer, streamed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.cli.drafts import DraftPainter, drafts_line
from outpace.cli.loading import open_llm
from outpace.cli.options import EngineFlags, SamplingFlags, ShowDraftsFlag, flatten, utf8
from outpace.errors import BackendError, UsageError
from outpace.types import FinishReason, TokenDelta

if TYPE_CHECKING:
    from outpace.bench.timing import StreamTiming
    from outpace.llm import LLM

PROBE_BYTES = 96 << 20  # the bandwidth probe reads no more: `run` shall end soon and stay small
MAX_STDIN_BYTES = 64 << 20
FROM_STDIN = "-"


@flatten
def run(
    model: Annotated[
        str | None, typer.Argument(help="A model's short name, path or repository.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(help="What to answer; '-' or nothing: read stdin.", show_default=False)
    ] = None,
    *,
    model_option: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="The model; the argument is the prompt."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="A system message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Complete the text; no chat template.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a stream.")] = False,
    stats: Annotated[
        bool | None,
        typer.Option("--stats/--no-stats", help="Print speeds on stderr; default: on a terminal."),
    ] = None,
    show_drafts: ShowDraftsFlag = False,
    sampling: SamplingFlags,
    engine: EngineFlags,
) -> None:
    """Answer one prompt, streaming.

    outpace run MODEL PROMPT; outpace run PROMPT (with the default model, where the prompt has a space in
    it); or outpace run -m MODEL PROMPT. Greedy unless --temperature is given.
    """
    name, prompt = split_arguments(model, prompt, model_option)
    text = utf8(prompt, "the prompt") if prompt not in (None, FROM_STDIN) else _read_stdin(keep_end=raw)
    if not text.strip():
        raise UsageError("the prompt is empty")
    if system is not None:
        utf8(system, "--system")
    if raw and system is not None:
        raise UsageError("--system needs the chat template, which --raw leaves out; give one of them")
    with open_llm(name, engine, one_prompt=True) as llm:
        from outpace.bench.timing import StreamTiming

        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": text})
        timing = StreamTiming()
        deltas = llm.stream(text if raw else messages, sampling.as_params(temperature=0.0))
        painter = DraftPainter(llm.tokenizer) if show_drafts else None
        pieces: list[str] = []
        for delta in checked(deltas, timing):
            pieces.append(delta.text)
            if not as_json:
                sys.stdout.write(painter.paint(delta) if painter else delta.text)
                sys.stdout.flush()
        if as_json:
            print(json.dumps(_report(llm, timing, "".join(pieces))))
        elif not "".join(pieces[-1:]).endswith("\n"):
            print()
        if stats or (stats is None and sys.stderr.isatty() and not as_json):
            print(speed_lines(llm, timing, probe_bandwidth(llm)), file=sys.stderr)
        if painter and painter.legend():
            print(painter.legend(), file=sys.stderr)


def checked(deltas: Iterable[TokenDelta], timing: StreamTiming) -> Iterator[TokenDelta]:
    """A stream's deltas, timed as they pass. Raises BackendError where the request failed."""
    for delta in deltas:
        timing.observe(delta)
        if delta.finish_reason is FinishReason.ERROR:
            raise BackendError(delta.error or "the request failed")
        yield delta


def speed_lines(llm: LLM, timing: StreamTiming, bandwidth: float | None) -> str:
    """`speed_line`, and a second line where drafts were verified."""
    line = speed_line(llm, timing, bandwidth)
    if not timing.draft_counts:
        return line
    drafting = llm.loop.engine.metrics.draft_seconds
    return f"{line}\n{drafts_line(timing.draft_counts, timing.num_decode_steps, drafting)}"


def speed_line(llm: LLM, timing: StreamTiming, bandwidth: float | None) -> str:
    """TTFT, tokens/s and memory-bandwidth utilisation (of `bandwidth` GB/s) in one line."""
    parts = [f"{timing.num_prompt_tokens} + {len(timing.token_ids)} tokens"]
    if timing.ttft_ms is not None:
        parts.append(f"TTFT {timing.ttft_ms:.0f} ms")
    if timing.tok_s is not None:
        parts.append(f"{timing.tok_s:.1f} tokens/s")
    if timing.num_accepted:
        parts.append(f"{timing.acceptance_length or 0.0:.2f} tokens/step")
    mbu = _mbu(llm, timing, bandwidth)
    if mbu is not None:
        parts.append(f"MBU {mbu:.0%} of {bandwidth:.1f} GB/s")
    return " · ".join(parts)


def probe_bandwidth(llm: LLM) -> float | None:
    """The machine's read bandwidth in GB/s with the model's threads; None without weights to read."""
    from outpace.bench.bandwidth import read_bandwidth, threads_of

    num_bytes = min(llm.backend.weight_bytes, PROBE_BYTES)
    return read_bandwidth(num_bytes, threads_of(llm.backend.description)) if num_bytes else None


def _mbu(llm: LLM, timing: StreamTiming, bandwidth: float | None) -> float | None:
    from outpace.bench.bandwidth import utilisation

    if timing.num_decode_steps < 1:
        return None
    return utilisation(llm.backend.weight_bytes, timing.decode_seconds / timing.num_decode_steps, bandwidth)


def _report(llm: LLM, timing: StreamTiming, text: str) -> dict[str, Any]:
    bandwidth = probe_bandwidth(llm)
    return {
        "model": llm.model_name,
        "text": text,
        "token_ids": timing.token_ids,
        "finish_reason": timing.finish_reason,
        "prompt_tokens": timing.num_prompt_tokens,
        "completion_tokens": len(timing.token_ids),
        "ttft_ms": timing.ttft_ms,
        "tok_s": timing.tok_s,
        "acceptance_length": timing.acceptance_length,
        "drafts": {each.proposer: [each.num_drafted, each.num_accepted] for each in timing.draft_counts},
        "draft_s": llm.loop.engine.metrics.draft_seconds,
        "mbu": _mbu(llm, timing, bandwidth),
        "bandwidth_gb_s": bandwidth,
        "load_s": llm.load_seconds,
        "start_s": _start_seconds(timing),
    }


def _start_seconds(timing: StreamTiming) -> float | None:
    """Seconds from the start of the program to the first token."""
    from outpace.config import process_seconds

    age = process_seconds()
    return None if age is None or timing.first is None else age - (perf_counter() - timing.first)


def split_arguments(model: str | None, prompt: str | None, option: str | None) -> tuple[str, str | None]:
    """Which argument is the model and which the prompt; the prompt is None where stdin holds it."""
    from outpace.models.hub import DEFAULT_MODEL

    if option is not None:
        if prompt is not None:
            raise UsageError("with --model there is one argument, the prompt; quote it if it has spaces")
        return option, model
    if model is None:
        return DEFAULT_MODEL, None
    if prompt is None and (model == FROM_STDIN or _is_prompt(model)):
        return DEFAULT_MODEL, model
    return model, prompt


def _is_prompt(argument: str) -> bool:
    """Whether a single argument is a prompt: no model's name has white space in it, but a path may."""
    return any(character.isspace() for character in argument) and not Path(argument).exists()


def _read_stdin(*, keep_end: bool) -> str:
    """The prompt from stdin, without the line ends that it closes with unless `keep_end`."""
    if sys.stdin.isatty():
        raise UsageError(
            "no prompt: write `outpace run MODEL PROMPT` (or `outpace run -m MODEL PROMPT`), "
            "or pipe the prompt in"
        )
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise UsageError(f"stdin: the prompt is longer than {MAX_STDIN_BYTES >> 20} MiB")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin: not UTF-8 at byte {error.start}; convert it, for instance with iconv"
        ) from error
    if not text.strip():
        raise UsageError(
            "stdin: the prompt is empty. (One word alone is taken for the model: "
            "for a prompt of one word write `outpace run -m MODEL PROMPT`.)"
        )
    return text if keep_end else text.rstrip("\r\n")
