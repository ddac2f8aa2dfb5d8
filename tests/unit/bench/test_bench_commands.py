"""`outpace bench step` and `generate` as programs: their JSON is an interface."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outpace import LLM, SamplingParams
from outpace.config import child_environment

NULL = ("--backend", "null", "--kv-cache", "64MiB")

STEP_KEYS = [
    "model", "isa", "threads", "weight_bytes", "bandwidth_gb_s", "step_ms", "step_ratio", "prefill_tok_s",
    "prefill_tops", "context_decode", "context_ratio", "concurrent_decode", "concurrent_ratio", "mbu",
    "load_s", "peak_rss_bytes",
]  # fmt: skip
FIGURES = ["prompt_tokens", "completion_tokens", "ttft_ms", "tok_s", "acceptance_length", "output_sha256"]


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outpace.cli.main", "bench", *arguments]
    environment = child_environment(**environment)
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def last_line(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    requests = [
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9},
        {"messages": [{"role": "user", "content": "And now?"}], "max_tokens": 5, "temperature": 1.0},
    ]
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def test_step_reports_these_keys(model_135m: Path) -> None:
    report = last_line(bench("step", "--model", str(model_135m), *NULL, "--json"))
    assert list(report) == STEP_KEYS
    assert list(report["step_ms"]) == ["1", "2", "4", "8", "16", "32"]
    assert list(report["prefill_tok_s"]) == ["512", "2048"]
    assert all(value > 0 for value in [*report["step_ms"].values(), *report["prefill_tok_s"].values()])
    assert report["step_ratio"]["8"] == pytest.approx(report["step_ms"]["8"] / report["step_ms"]["1"])
    assert list(report["context_decode"]) == list(report["context_ratio"]) == ["256", "2048", "8192"]
    assert report["context_ratio"]["256"] == 1
    # 2 x (tokens x weights of the layers + weights of the head), 512 times that of one token
    assert report["prefill_tops"]["512"] == pytest.approx(
        2 * (512 * 106_168_320 + 49_152 * 576) / 512 * report["prefill_tok_s"]["512"] / 1e12
    )
    assert list(report["concurrent_decode"]) == ["1", "16"]
    assert report["concurrent_decode"]["1"] == report["context_decode"]["256"]
    assert report["concurrent_ratio"] > 0
    assert (report["weight_bytes"], report["mbu"]) == (0, None)  # the null backend reads none
    assert 20e6 < report["peak_rss_bytes"] < 4e9
    assert report["load_s"] > 0


def test_step_leaves_out_what_the_context_does_not_hold(model_135m: Path) -> None:
    report = last_line(
        bench("step", "-m", str(model_135m), *NULL[:-1], "1MiB", "--max-context", "600", "--json")
    )
    assert report["prefill_tok_s"]["2048"] is report["prefill_tops"]["2048"] is None
    assert report["context_decode"]["2048"] is report["context_ratio"]["2048"] is None
    assert report["concurrent_decode"]["16"] is report["concurrent_ratio"] is None


def test_the_step_table_says_what_is_missing(model_135m: Path) -> None:
    done = bench("step", "-m", str(model_135m), *NULL[:-1], "6MiB", "--max-context", "600")
    assert done.returncode == 0, done.stderr
    rows = {
        line.split("│")[1].strip(): line.split("│")[2].strip()
        for line in done.stdout.splitlines()
        if "│" in line
    }
    assert rows["decode, context 8192"] == rows["decode, 16 requests"] == rows["prefill 2048"] == "-"
    assert rows["decode, context 256"].endswith("tokens/s (100%)")
    assert rows["step, rows 1"].endswith("(1.00x)")


def test_generate_agrees_with_the_library(model_135m: Path, workload: Path) -> None:
    report = last_line(
        bench(
            "generate",
            "--model",
            str(model_135m),
            *NULL,
            "--workload",
            str(workload),
            "--draft",
            "off",
            "--json",
        )
    )
    assert set(report) == {*FIGURES, "model", "workload", "draft", "requests"}
    for request in report["requests"]:
        assert set(request) == {*FIGURES, "finish_reason"}
    with LLM(model_135m, backend="null", kv_cache_bytes=64 << 20) as llm:
        outputs = [
            llm.chat(
                [{"role": "user", "content": text}],
                SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=0),
            )[0]
            for text, max_tokens, temperature in (("Hello", 9, 0.0), ("And now?", 5, 1.0))
        ]
    lines = [",".join(map(str, output.outputs[0].token_ids)) + "\n" for output in outputs]
    assert report["output_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    for request, output, text in zip(report["requests"], outputs, lines, strict=True):
        assert request["output_sha256"] == hashlib.sha256(text.encode()).hexdigest()
        assert request["prompt_tokens"] == len(output.prompt_token_ids)
        assert request["completion_tokens"] == len(output.outputs[0].token_ids)
        assert request["ttft_ms"] > 0
    assert report["completion_tokens"] == sum(r["completion_tokens"] for r in report["requests"])
    assert report["draft"] == "off"


@pytest.mark.parametrize("verb", ["generate", "drafts", "step"])
def test_nothing_is_kept_to_draft_from(model_135m: Path, workload: Path, tmp_path: Path, verb: str) -> None:
    """Nor read: a file of drafts is made where a run begins. Though all else of this machine keeps them."""
    kept = {"OUTPACE_CACHE": str(tmp_path / "cache"), "OUTPACE_DRAFT_PERSIST": "1"}
    arguments = [verb, "-m", str(model_135m), *NULL]
    if verb != "step":
        arguments += ["--workload", str(workload)]
    done = bench(*arguments, **kept)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache" / "drafts").exists()
    if verb == "generate":
        assert bench(*arguments, "--draft-persist", **kept).returncode == 0
        assert any((tmp_path / "cache" / "drafts").iterdir())


def test_tables_are_for_people(model_135m: Path, workload: Path) -> None:
    done = bench("generate", "-m", str(model_135m), *NULL, "--workload", str(workload))
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout
    assert "all" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("generate", "--workload", "nonsense"), "no workload 'nonsense'"),
        (("step", "--model", "no-such-model"), "no-such-model"),
        (("peer", "--rounds", "0"), "--rounds"),
    ],
)
def test_bad_calls_are_2(arguments: tuple[str, ...], problem: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


DRAFTS_KEYS = ["model", "rounds", "concurrency", "temperature", "draft_us", "workloads"]
WORKLOAD_KEYS = [
    "workload", "requests", "completion_tokens", "tok_s", "ratio", "tokens_per_step", "ttft_ms", "drafts",
    "output_sha256",
]  # fmt: skip


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_drafts_reports_both_runs(model_135m: Path, workload: Path, concurrency: str) -> None:
    model = ("--model", str(model_135m), *NULL)
    named = ("--workload", f"{workload},{workload}", "--rounds", "2", "--concurrency", concurrency)
    report = last_line(bench("drafts", *model, *named, "--json"))
    assert list(report) == DRAFTS_KEYS
    assert report["draft_us"] > 0
    (figures,) = report["workloads"]  # named twice, run once
    assert list(figures) == WORKLOAD_KEYS
    assert figures["requests"] == 2
    assert figures["ratio"] == pytest.approx(figures["tok_s"]["on"] / figures["tok_s"]["off"])
    assert figures["tokens_per_step"] >= 1
    plain = last_line(bench("generate", *model, "--workload", str(workload), "--draft", "off", "--json"))
    assert figures["output_sha256"] == plain["output_sha256"]


def test_the_drafts_table(model_135m: Path, workload: Path) -> None:
    done = bench(
        "drafts", "--model", str(model_135m), *NULL, "--workload", str(workload), "--temperature", "1"
    )
    assert done.returncode == 0, done.stderr
    assert "temperature 1" in done.stdout
    assert "accepted: " in done.stdout
