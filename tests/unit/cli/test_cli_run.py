"""`outpace run`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from outpace import LLM, SamplingParams
from outpace.cli.run import split_arguments
from outpace.errors import UsageError
from outpace.models.hub import DEFAULT_MODEL

Invoke = Callable[..., Result]
Program = Callable[..., "subprocess.CompletedProcess[bytes]"]
OUTPACE = (sys.executable, "-m", "outpace.cli.main")

KEYS = {
    "model", "text", "token_ids", "finish_reason", "prompt_tokens", "completion_tokens", "ttft_ms", "tok_s",
    "acceptance_length", "drafts", "draft_s", "mbu", "bandwidth_gb_s", "load_s", "start_s",
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "prompt", "option", "expected"),
    [
        ("m", "p", None, ("m", "p")),
        ("m", None, None, ("m", None)),  # the prompt comes from stdin
        ("why is it so?", None, None, (DEFAULT_MODEL, "why is it so?")),
        ("-", None, None, (DEFAULT_MODEL, "-")),
        (None, None, None, (DEFAULT_MODEL, None)),
        ("p", None, "m", ("m", "p")),
        (None, None, "m", ("m", None)),
    ],
)
def test_which_argument_is_which(
    model: str | None, prompt: str | None, option: str | None, expected: tuple[str, str | None]
) -> None:
    assert split_arguments(model, prompt, option) == expected


def test_two_arguments_beside_the_option_are_refused() -> None:
    with pytest.raises(UsageError, match="quote"):
        split_arguments("two", "words", "m")


def test_json_agrees_with_the_library(invoke: Invoke, null_model: tuple[str, ...]) -> None:
    result = invoke("run", *null_model, "--json", "-n", "12", "Hello")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert set(report) == KEYS
    with LLM(null_model[1], backend="null", kv_cache_bytes=8 << 20, max_context=1024) as llm:
        [expected] = llm.chat(
            [{"role": "user", "content": "Hello"}], SamplingParams(temperature=0, max_tokens=12)
        )
    assert report["token_ids"] == list(expected.outputs[0].token_ids)
    assert report["text"] == expected.outputs[0].text
    assert report["finish_reason"] == expected.outputs[0].finish_reason
    assert report["prompt_tokens"] == len(expected.prompt_token_ids)
    assert report["completion_tokens"] == len(report["token_ids"])
    assert report["ttft_ms"] > 0


def test_the_stream_is_the_text(invoke: Invoke, null_model: tuple[str, ...]) -> None:
    arguments = (*null_model, "-n", "12", "--system", "Be brief.", "Hello")
    text = json.loads(invoke("run", "--json", *arguments).stdout)["text"]
    streamed = invoke("run", *arguments)
    assert streamed.stdout == (text if text.endswith("\n") else text + "\n")
    assert streamed.stderr == ""  # no terminal, no --stats


def test_stdin_is_the_prompt_where_there_is_none(invoke: Invoke, null_model: tuple[str, ...]) -> None:
    given = json.loads(invoke("run", *null_model, "--json", "-n", "8", "Grüße").stdout)
    for arguments in ((), ("-",)):
        piped = invoke("run", *null_model, "--json", "-n", "8", *arguments, stdin="Grüße\n".encode())
        assert json.loads(piped.stdout)["token_ids"] == given["token_ids"]


def test_raw_leaves_the_template_out(invoke: Invoke, null_model: tuple[str, ...]) -> None:
    raw = json.loads(invoke("run", *null_model, "--json", "-n", "4", "--raw", "Hello").stdout)
    assert raw["prompt_tokens"] == 1


def test_stats_name_the_speeds(invoke: Invoke, null_model: tuple[str, ...]) -> None:
    result = invoke("run", *null_model, "--stats", "--ignore-eos", "-n", "12", "Hello")
    assert "12 tokens · TTFT " in result.stderr
    assert " tokens/s" in result.stderr


def test_drafts_are_shown_and_counted(invoke: Invoke, model_135m: Path) -> None:
    """The real model goes on with what repeats itself, so that look-up drafts it on any machine."""
    options = ("-m", str(model_135m), "--kv-cache", "64MiB", "--no-draft-persist", "--raw", "-n", "60")
    arguments = (*options, "one two three four five six seven " * 12)
    plain = invoke("run", *arguments)
    shown = invoke("run", *arguments, "--show-drafts", "--stats")
    assert plain.exit_code == shown.exit_code == 0, shown.output
    coloured = re.findall(r"(\x1b\[3\dm)(.*?)\x1b\[0m", shown.stdout, re.DOTALL)
    assert len(coloured) > 3
    assert re.sub(r"\x1b\[\d+m", "", shown.stdout) == plain.stdout
    counts = re.search(r"^drafts accepted: (.+) · (\d+) µs a step to draft$", shown.stderr, re.MULTILINE)
    assert counts, shown.stderr
    assert int(counts[2]) > 0
    accepted = dict(re.findall(r"(\w+) (\d+) of \d+", counts[1]))
    assert int(accepted["suffix"]) > 10
    legend = dict(re.findall(r"(\x1b\[3\dm)(\w+)\x1b\[0m", shown.stderr))
    assert set(legend) == {colour for colour, _ in coloured}, "each colour is somebody's"
    assert set(legend.values()) <= set(accepted)
    assert "suffix" in legend.values()


@pytest.mark.parametrize(
    ("arguments", "stdin", "problem"),
    [
        ((), b"\xff\xfe bytes", "stdin: not UTF-8 at byte 0"),
        ((), b" \n", "stdin: the prompt is empty"),
        ((" \n",), b"", "the prompt is empty"),
        (("",), b"", "the prompt is empty"),
        (("--raw", "--system", "x", "Hello"), b"", "--system"),
        (("--temperature", "-1", "Hello"), b"", "temperature"),
        (("--top-p", "2", "Hello"), b"", "top_p"),
        (("--max-context", "16", "word " * 40), b"", "the context holds 16"),
        (("--threads", "-4", "Hello"), b"", "num_threads"),
    ],
)
def test_bad_input_is_2_with_the_field(
    invoke: Invoke, null_model: tuple[str, ...], arguments: tuple[str, ...], stdin: bytes, problem: str
) -> None:
    result = invoke("run", *null_model, *arguments, stdin=stdin)
    assert result.exit_code == 2
    assert result.stderr.startswith("outpace: error: ")
    assert problem in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unknown_model_is_2(program: Program) -> None:
    done = program("run", "no-such-model", "Hello")
    assert done.returncode == 2
    assert done.stderr.startswith(b"outpace: error: ")
    assert b"no-such-model" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_prompt_that_is_not_utf8_is_2(null_model: tuple[str, ...]) -> None:
    command = [os.fsencode(part) for part in (*OUTPACE, "run", *null_model)]
    for odd in ([b"caf\xe9"], *([b"Hi", option, b"caf\xe9"] for option in (b"--stop", b"--regex", b"-s"))):
        done = subprocess.run([*command, *odd], capture_output=True, check=False, timeout=60)
        assert done.returncode == 2
        assert b"not UTF-8" in done.stderr


def test_without_a_prompt_a_terminal_gets_an_error(null_model: tuple[str, ...]) -> None:
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [*OUTPACE, "run", *null_model], stdin=theirs, capture_output=True, check=False, timeout=60
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert b"no prompt" in done.stderr


def test_ctrl_c_stops_cleanly(null_model: tuple[str, ...]) -> None:
    endless = ("--ignore-eos", "-n", "100000", "--max-context", "8192", "--kv-cache", "64MiB")
    process = subprocess.Popen(
        [*OUTPACE, "run", *null_model, *endless, "Hello"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(50)  # it streams while it generates
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == b""
