"""`outpace bench peer`: turns, ratios, and llama.cpp itself where it is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from outpace.bench.contenders import Decoded, LlamaCppContender, LlamaCppProcess, OpenVinoProcess
from outpace.bench.peer import Figures, better, compare, equal_share, ratios
from outpace.bench.peers.worker import PeerProcess
from outpace.errors import BackendError, OutpaceError

FAST = Figures(
    decode_tok_s=20.0,
    ttft_ms=100.0,
    step_ms={"1": 50.0, "8": 70.0},
    prefill_tok_s={"512": 400.0},
    context_decode={"2048": 8.0},
)
SLOW = Figures(
    decode_tok_s=10.0,
    ttft_ms=50.0,
    step_ms={"1": 100.0, "8": 70.0},
    prefill_tok_s={"512": 800.0},
    context_decode={"2048": 16.0},
)


def test_a_ratio_above_one_is_faster() -> None:
    assert ratios(FAST, SLOW) == Figures(
        decode_tok_s=2.0,
        ttft_ms=0.5,
        step_ms={"1": 2.0, "8": 1.0},
        prefill_tok_s={"512": 0.5},
        context_decode={"2048": 0.5},
    )


def test_the_better_of_two_counts_for_each_figure() -> None:
    assert better([FAST, SLOW]) == Figures(
        decode_tok_s=20.0,
        ttft_ms=50.0,
        step_ms={"1": 50.0, "8": 70.0},
        prefill_tok_s={"512": 800.0},
        context_decode={"2048": 16.0},
    )


def test_equal_share_counts_up_to_the_first_difference() -> None:
    assert equal_share([[1, 2, 3], [4]], [[1, 9, 3], [4]]) == pytest.approx(2 / 4)
    assert equal_share([[1, 2]], [[1, 2]]) == 1


class Recorder:
    """A contender that writes down when it is asked, and answers with figures of its own."""

    def __init__(self, name: str, log: list[str], seconds: float) -> None:
        self.name, self.log, self.seconds = name, log, seconds

    def decode(self, prompt_token_ids: Sequence[int], max_tokens: int) -> Decoded:
        self.log.append(self.name)
        return Decoded(tuple(range(max_tokens)), self.seconds, self.seconds * (max_tokens - 1))

    def step(self, rows: int, runs: int, context: int = 256) -> list[float]:
        self.log.append(self.name)
        return [self.seconds * rows * context / 256] * runs

    def prefill(self, num_tokens: int) -> float:
        self.log.append(self.name)
        return self.seconds * num_tokens


def test_turns_alternate_and_rounds_reverse() -> None:
    log: list[str] = []
    contenders = {"a": Recorder("a", log, 0.5), "b": Recorder("b", log, 0.25)}
    figures, outputs = compare(contenders, [([1, 2], 4)], rounds=2, max_context=600, pause=0)
    measurements = 1 + 4 + 1  # decode, four steps, one prefill: 2048 does not fit
    assert log == ["a", "b"] * measurements + ["b", "a"] * measurements
    assert figures["a"] == Figures(
        decode_tok_s=2.0, ttft_ms=500.0, step_ms={"1": 500.0, "8": 4000.0, "16": 8000.0, "32": 16000.0},
        prefill_tok_s={"512": 2.0}, context_decode={},
    )  # fmt: skip
    assert figures["b"].decode_tok_s == 4.0
    assert outputs["a"] == [(0, 1, 2, 3)]


def test_decoding_is_measured_at_a_long_context_that_fits() -> None:
    contenders = {"a": Recorder("a", [], 0.5)}
    for max_context, expected in ((2048, {}), (2049, {"2048": 0.25})):
        figures, _ = compare(contenders, [([1], 2)], rounds=1, max_context=max_context, pause=0)
        assert figures["a"].context_decode == expected


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(OutpaceError, match=r"CC=clang-16 .*pip install \"outpace\[peer\]\""):
        LlamaCppProcess(Path("x.gguf"), 1, 32)


@pytest.fixture
def installed() -> None:
    pytest.importorskip("llama_cpp", reason="NOT TESTED: llama-cpp-python is not installed (outpace[peer])")


@pytest.mark.usefixtures("installed")
def test_a_file_that_llama_cpp_refuses(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no model")
    with pytest.raises(BackendError, match="cannot load"):
        LlamaCppProcess(tmp_path / "x.gguf", 1, 32)


@pytest.mark.usefixtures("installed")
def test_llama_cpp_does_what_it_is_asked(model_135m: Path) -> None:
    with closing(LlamaCppProcess(model_135m, 2, 320)) as process:
        assert "CPU" in process.flags
        for flash in (False, True):
            contender = LlamaCppContender(process, flash=flash)
            first = contender.decode([504, 253, 2], 6)
            assert len(first.token_ids) == 6
            assert contender.decode([504, 253, 2], 6).token_ids == first.token_ids  # nothing is left over
            seconds = contender.step(8, 2)
            assert len(seconds) == 2
            assert min(seconds) > 0
            assert len(contender.step(1, 3, 300)) == 3  # another context
        with pytest.raises(BackendError, match="prefill"):
            process.ask("prefill", tokens=512, flash=False)  # more than its context
        assert contender.prefill(64) > 0  # it still answers


@pytest.mark.usefixtures("installed")
def test_the_command_reports_ratios(model_135m: Path, tmp_path: Path) -> None:
    workload = tmp_path / "one.jsonl"
    workload.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}) + "\n")
    command = [
        sys.executable, "-m", "outpace.cli.main", "bench", "peer", "-m", str(model_135m), "--backend", "null",
        "--kv-cache", "64MiB", "--max-context", "300", "--workload", str(workload), "--rounds", "1", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report["ratio"]) == {"decode_tok_s", "ttft_ms", "step_ms", "prefill_tok_s", "context_decode"}
    assert set(report["ratio"]["step_ms"]) == {"1", "8", "16", "32"}
    assert report["peer_build"]["flags"].startswith("CPU")
    assert report["outpace_build"]["backend"] == "null"
    assert set(report["peer_variants"]) == {"flash_attention_off", "flash_attention_on"}
    assert report["ratio"]["decode_tok_s"] == pytest.approx(
        report["outpace"]["decode_tok_s"] / report["peer"]["decode_tok_s"]
    )


def test_only_gguf_can_be_compared(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "outpace.cli.main", "bench", "peer", "-m", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "GGUF" in done.stderr


@pytest.mark.usefixtures("installed")
def test_its_prompt_lookup_changes_no_answer(model_135m: Path) -> None:
    with closing(LlamaCppProcess(model_135m, 2, 512)) as process:
        contender = LlamaCppContender(process, flash=False)
        prompt = [504, 253, 2, 504, 253, 2, 504, 253]
        plain = contender.decode(prompt, 60).token_ids
        for num_pred in (2, 10):
            reply = process.ask(
                "lookup", token_ids=prompt, max_tokens=60, flash=False, num_pred=num_pred, max_ngram=2
            )
            assert len(reply["token_ids"]) == 60
            assert reply["steps"] < 59, "some drafts are accepted"
            # A batch of several rows rounds otherwise than one row: a tie may go the other way.
            assert tuple(reply["token_ids"][:20]) == plain[:20]


@pytest.mark.usefixtures("installed")
def test_speculation_reports_every_contender(model_135m: Path, tmp_path: Path) -> None:
    workload = tmp_path / "one.jsonl"
    workload.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}) + "\n")
    command = [
        sys.executable, "-m", "outpace.cli.main", "bench", "speculation", "-m", str(model_135m), "--kv-cache",
        "64MiB", "--workload", str(workload), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(done.stdout.splitlines()[-1])["workloads"]
    assert {"off", "llama.cpp", "llama.cpp lookup"} <= set(figures["ratio"])
    assert all(value > 0 for value in [*figures["tok_s"].values(), *figures["ratio"].values()])


def test_a_missing_peer_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino_genai", None)
    with pytest.raises(OutpaceError, match=r"pip install \"outpace\[peer\]\""):
        OpenVinoProcess(Path("x.gguf"), 1)


def test_openvino_generates_as_many_tokens_as_it_is_asked(model_135m: Path) -> None:
    pytest.importorskip(
        "openvino_genai", reason="NOT TESTED: openvino-genai is not installed (outpace[peer])"
    )
    with closing(OpenVinoProcess(model_135m, 2)) as process:
        short = process.decode_seconds([504, 253, 2], 4, lookup=False)
        assert 0 < short < process.decode_seconds([504, 253, 2], 64, lookup=False)
        assert process.decode_seconds([504, 253, 2], 16, lookup=True) > 0


def test_a_worker_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dying.py").write_text("import sys; sys.stdin.readline(); sys.exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        closing(PeerProcess("a peer", "dying", "json", "install it again")) as process,
        pytest.raises(BackendError, match=r"a peer ended with status 3 during load\. install it again"),
    ):
        process.ask("load")
