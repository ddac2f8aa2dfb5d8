"""`outpace serve` as a user starts and stops it: a real process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

LIMITS = ["--max-context", "512", "--kv-cache", "64MiB"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "outpace.cli.main", "serve", *arguments]


@contextmanager
def serving(model: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address, once it says that it serves."""
    process = subprocess.Popen(
        command(str(model), "--port", "0", "--backend", "null", *LIMITS, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"at (http://127\.0\.0\.1:\d+)/v1", line)
        assert found, line + process.communicate(timeout=10)[1]
        assert process.stdout.readline().startswith(f"try: curl {found[1]}/v1/chat/completions ")
        yield process, found[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_gracefully(model_135m: Path, sig: signal.Signals) -> None:
    with serving(model_135m, "--grace", "0.2") as (process, url):
        models = httpx.get(f"{url}/v1/models").json()["data"]
        assert models[0]["id"] == model_135m.stem
        body = {"prompt": "a", "n": 8, "max_tokens": 500, "ignore_eos": True, "stream": True, "logprobs": 5}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(sig)
            start = time.monotonic()
            rest = [line for line in lines if line]
        assert '"shutting_down"' in rest[-1] or rest[-1] == "data: [DONE]"
        err = process.communicate(timeout=10)[1]
        assert time.monotonic() - start < 5
        assert process.returncode == 0, err
        assert err == "stopped\n"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_the_key_comes_from_the_environment(model_135m: Path) -> None:
    with serving(model_135m, OUTPACE_API_KEY="sk-secret") as (process, url):
        assert httpx.get(f"{url}/v1/models").status_code == 401
        key = {"authorization": "Bearer sk-secret"}
        assert httpx.get(f"{url}/v1/models", headers=key).status_code == 200
        process.terminate()
        out, err = process.communicate(timeout=10)
    assert "sk-secret" not in out + err


def test_aliases(model_135m: Path) -> None:
    with serving(model_135m, "--alias", "fast", "--alias", f"slow={model_135m.stem}") as (process, url):
        names = [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]
        assert names == [model_135m.stem, "fast", "slow"]
        body = {"model": "fast", "prompt": "a", "max_tokens": 1}
        assert httpx.post(f"{url}/v1/completions", json=body).json()["model"] == "fast"
        process.terminate()
        process.communicate(timeout=10)


def test_models_on_demand(model_135m: Path, tmp_path: Path) -> None:
    """`--also` in use, seen and ended by `outpace ps` and `outpace stop`."""
    other = tmp_path / "other.gguf"
    other.symlink_to(model_135m)

    def outpace(*arguments: str) -> str:
        line = [sys.executable, "-m", "outpace.cli.main", *arguments, "--url", url]
        return subprocess.run(line, check=True, capture_output=True, text=True, timeout=20).stdout

    options = ("--also", str(other), "--alias", "small=other", "--memory", "150MiB", "--keep-alive", "1h")
    with serving(model_135m, *options) as (process, url):
        header, row = outpace("ps").splitlines()
        assert header.split() == ["NAME", "SIZE", "CONTEXT", "REQUESTS", "UNTIL"]
        assert row.split() == [model_135m.stem, "67", "MB", "512", "0", "it", "is", "stopped"]
        body = {"model": "small", "prompt": "a", "max_tokens": 1}
        assert httpx.post(f"{url}/v1/completions", json=body).json()["model"] == "small"
        assert outpace("ps").splitlines()[2].split()[:2] == ["other", "67"]
        assert outpace("ps").endswith(" from now\n")
        assert outpace("stop", "small") == "other is not in memory any more\n"
        assert [each["name"] for each in json.loads(outpace("ps", "--json"))] == [model_135m.stem]
        outpace("stop", model_135m.stem)
        assert outpace("ps") == "no model is in memory; the next request loads one\n"
        assert httpx.post(f"{url}/v1/completions", json=body).json()["model"] == "small"
        process.terminate()
        assert process.communicate(timeout=10)[1] == "stopped\n"
        assert process.returncode == 0


def test_an_alias_of_another_model(model_135m: Path) -> None:
    arguments = command(str(model_135m), "--backend", "null", *LIMITS, "--port", "0", "--alias", "gpt-9=gpt")
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert "--alias gpt-9=gpt" in done.stderr
    assert model_135m.stem in done.stderr


def test_port_in_use(tmp_path: Path) -> None:
    """Found before the model loads: here there is not even one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            command(str(tmp_path / "none.gguf"), "--port", str(port)),
            check=False,
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "70000"], "65535"),
        (["--host", "no such host!", "--allow-open"], "no such host"),
        (["--api-keys", "/nowhere/keys.json"], "outpace keys add"),
        (["--cors-origin", "*"], "https://chat.example"),
        (["--tls-key", "key.pem"], "--tls-cert"),
        (["--api-key", "schlüssel"], "ASCII"),
        (["--max-body", "big"], "no size"),
        (["--alias", "=model"], "NAME=MODEL"),
        (["--alias", "name="], "NAME=MODEL"),
        (["--keep-alive", "soon"], "5m"),
        (["--sampling", "heat=1"], "temperature"),
        (["--sampling", "temperature"], "temperature"),
        (["--sampling", "top_k=0.5"], "top_k"),
        (["--sampling", "temperature=-1"], "temperature"),
        (["--sampling", "repetition_penalty=nan"], "repetition_penalty"),
    ],
)
def test_wrong_options(arguments: list[str], says: str) -> None:
    done = subprocess.run(command(*arguments), check=False, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_beyond_loopback_a_key_is_needed(tmp_path: Path) -> None:
    arguments = command(str(tmp_path / "none.gguf"), "--host", "0.0.0.0", "--port", "0")
    environment = {name: value for name, value in os.environ.items() if name != "OUTPACE_API_KEY"}

    def start(*more: str) -> str:
        done = subprocess.run(
            [*arguments, *more], check=False, capture_output=True, text=True, timeout=60, env=environment
        )
        assert done.returncode == 2
        return done.stderr

    refused = start()
    assert "OUTPACE_API_KEY" in refused
    assert "--allow-open" in refused
    assert "none.gguf" not in refused
    forced = start("--allow-open")
    assert "warning: anyone who can reach 0.0.0.0" in forced
    assert "none.gguf" in forced  # no such model
    assert "warning" not in start("--api-key", "sk-secret")
