"""`bench overhead`, as a program: real engines and servers, few tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def overhead(model: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "outpace.cli.main", "bench", "overhead", "-m", str(model), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_server_against_the_engine(model_135m: Path) -> None:
    report = overhead(model_135m, "--rounds", "2", "--max-tokens", "16", "--json")
    base, other = report["base"], report["other"]
    assert (base["name"], other["name"]) == ("engine alone", "through the server")
    assert base["completion_tokens"] == other["completion_tokens"] == 16
    assert base["prompt_tokens"] == other["prompt_tokens"] > 10
    assert len(report["tok_s_ratios"]) == 2
    # A server can't be twice as fast as its engine, nor so slow, even on a busy machine.
    assert 0.3 < report["tok_s_ratio"] < 2.0
    assert other["ttft_ms"] > 0


@pytest.mark.model05b
def test_its_processes_end_with_it(model_135m: Path) -> None:
    command = [sys.executable, "-m", "outpace", "bench", "overhead", "-m", str(model_135m), "--rounds", "100"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as bench:
        assert bench.stderr is not None
        while "1 of 100" not in bench.stderr.readline():
            assert bench.poll() is None
        others = children(bench.pid)
        assert len(others) == 2, "the engine alone, and the server"
        bench.terminate()
        assert bench.wait(60) == 143
        assert not any(Path(f"/proc/{pid}").exists() for pid in others)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_many_tools_against_one(model_05b: Path) -> None:
    report = overhead(model_05b, "--tools", "40", "--rounds", "1", "--max-tokens", "24", "--json")
    base, other = report["base"], report["other"]
    assert (base["name"], other["name"]) == ("1 tool", "40 tools")
    assert other["prompt_tokens"] > 500
    assert base["prompt_tokens"] == pytest.approx(other["prompt_tokens"], rel=0.05)
    assert min(base["completion_tokens"], other["completion_tokens"]) > 8
