"""The examples of README and docs, run as they are written."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
PAGES = (_ROOT / "README.md", _ROOT / "docs" / "BENCHMARKS.md")
OUTPACE = f"{shlex.quote(sys.executable)} -m outpace.cli.main"
SLOW_OR_ENDLESS = (
    "outpace ps",
    "outpace stop",
    "outpace serve",
    "outpace bench",
    "outpace doctor",
    "outpace launch",
)  # other tests run these


def blocks(language: str) -> list[str]:
    """The code blocks of one language."""
    text = "\n".join(page.read_text() for page in PAGES)
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    return found


def commands() -> list[str]:
    lines = [re.split(r"\s#\s", line)[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in dict.fromkeys(lines) if "outpace " in line and not line.startswith("pip ")]


@pytest.mark.parametrize("command", [line for line in commands() if not line.startswith(SLOW_OR_ENDLESS)])
def test_commands_run(command: str, model_135m: Path, tmp_path: Path) -> None:
    line = re.sub(r"\boutpace ", lambda _: OUTPACE + " ", command, count=1)
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith(SLOW_OR_ENDLESS)])
def test_other_commands_have_these_options(command: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", command.replace("outpace", OUTPACE, 1) + " --help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for option in re.findall(r" (--?[a-z-]+)", command):
        assert re.search(rf"(^|\s){option}\b", done.stdout), option


def test_python_runs(model_135m: Path) -> None:
    [library] = [block for block in blocks("python") if "from outpace" in block]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", library],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr == ""


@contextmanager
def server() -> Iterator[int]:
    """`outpace serve` on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    [command] = [line for line in commands() if line.startswith("outpace serve smollm2")]
    arguments = shlex.split(command.replace("8000", str(port)))[1:]
    process = subprocess.Popen(
        [sys.executable, "-m", "outpace.cli.main", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert process.poll() is None, process.stderr and process.stderr.read()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_the_openai_client_is_served(model_135m: Path) -> None:
    [client] = [block for block in blocks("python") if "from openai" in block]
    with server() as port:
        done = subprocess.run(
            [sys.executable, "-c", client.replace("8000", str(port))],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
