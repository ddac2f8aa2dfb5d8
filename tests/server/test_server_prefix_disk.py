"""A server's prefix cache on disk, as a real process that is killed and started again."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_serve_command import serving

WORDS = [f"word{number} is the {number * 37 % 101}th of them;" for number in range(30)]
BODY = {"prompt": " ".join(WORDS), "max_tokens": 12, "temperature": 0.7, "seed": 5, "ignore_eos": True}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"OUTPACE_CACHE": str(tmp_path / "cache"), "OUTPACE_PREFIX_CACHE_BYTES": str(1 << 28)}


def ask(url: str, **changes: Any) -> tuple[str, float]:
    """The answer, and which share of the prompt was cached."""
    reply = httpx.post(f"{url}/v1/completions", json={**BODY, **changes}, timeout=60).json()
    usage = reply["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return reply["choices"][0]["text"], cached / usage["prompt_tokens"]


def metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=20).text.splitlines()
    (written,) = (line for line in lines if line.startswith(f"outpace:{name}{{"))
    return float(written.split()[1])


@pytest.mark.parametrize(("backend", "pauses"), [("null", (0.0, 0.02)), ("native", (0.02,))])
def test_a_server_that_is_killed_while_it_writes(
    model_135m: Path, environment: dict[str, str], backend: str, pauses: tuple[float, ...]
) -> None:
    with serving(model_135m, "--backend", backend, "--prefix-cache-disk", "0", **environment) as (_, url):
        expected, _ = ask(url)
        others = [ask(url, prompt=f"{number} {BODY['prompt']}", max_tokens=1)[0] for number in range(2)]
    assert not (Path(environment["OUTPACE_CACHE"]) / "prefixes").exists()
    for pause in pauses:
        with serving(model_135m, "--backend", backend, **environment) as (process, url):
            assert ask(url)[0] == expected
            for number, other in enumerate(others):
                assert ask(url, prompt=f"{number} {BODY['prompt']}", max_tokens=1)[0] == other
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
            process.wait()
    with serving(model_135m, "--backend", backend, **environment) as (process, url):
        assert ask(url)[0] == expected
        process.terminate()
        assert process.wait(20) == 0
    with serving(model_135m, "--backend", backend, **environment) as (_, url):
        assert metric(url, "prefix_disk_bytes") > 0
        text, share = ask(url)
        assert text == expected
        assert share > 0.9


def test_two_servers_on_one_folder(model_135m: Path, environment: dict[str, str]) -> None:
    with (
        serving(model_135m, **environment) as (first, url),
        serving(model_135m, **environment) as (second, other),
    ):
        expected = [ask(url, seed=1)[0], ask(url, prompt="Another " * 300, seed=2)[0]]
        assert [ask(other, seed=1)[0], ask(other, prompt="Another " * 300, seed=2)[0]] == expected
        for process in (first, second):
            process.terminate()
            process.wait(20)
    with serving(model_135m, **environment) as (_, url):
        assert ask(url, seed=1)[1] > 0.9
        assert [ask(url, seed=1)[0], ask(url, prompt="Another " * 300, seed=2)[0]] == expected


def test_grammars_of_the_server_before_are_compiled_unasked(
    model_135m: Path, environment: dict[str, str]
) -> None:
    asked = {"max_tokens": 40, "structured_outputs": {"regex": "[0-9]{1,3} of them"}}
    with serving(model_135m, **environment) as (process, url):
        expected, _ = ask(url, **asked)
        assert metric(url, "compiled_grammars") == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    with serving(model_135m, **environment) as (_, url):
        until = time.monotonic() + 10
        while metric(url, "compiled_grammars") < 1:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert ask(url, **asked)[0] == expected
    kept = list(Path(environment["OUTPACE_CACHE"]).glob("prefixes/*/grammars.jsonl"))
    assert [len(path.read_text().splitlines()) for path in kept] == [1]
