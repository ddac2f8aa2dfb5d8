"""How the tests of the command line run it: in this process where that is enough, else as a program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from outpace.cli.main import build_app

OUTPACE = (sys.executable, "-m", "outpace.cli.main")

Invoke = Callable[..., Result]


@pytest.fixture
def invoke() -> Invoke:
    """`invoke("run", ..., stdin=b"")` runs the program in this process."""

    def call(*arguments: str, stdin: bytes | str = "") -> Result:
        return CliRunner().invoke(build_app(arguments[0]), list(arguments), input=stdin)

    return call


@pytest.fixture
def program() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """`program("run", ..., stdin=b"")` runs it as a process of its own."""

    def call(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*OUTPACE, *arguments], input=stdin, capture_output=True, check=False, timeout=120
        )

    return call


@pytest.fixture(scope="session")
def null_model(model_135m: Path) -> tuple[str, ...]:
    """Options for a model without weights: the default model's tokenizer, the null backend."""
    return ("-m", str(model_135m), "--backend", "null", "--kv-cache", "8MiB", "--max-context", "1024")
