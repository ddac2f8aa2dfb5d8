"""`outpace serve --config`: a file of options, and what becomes of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CONFIG = """
model = "a\\"b\\u007f.gguf"
port = 8123
host = "::1"
kv-cache = "1MiB"
pin = false
grace = 1.5
alias = ["fast", "slow"]
api-key = "sk-secret"
"""


def show(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTPACE_")}
    return subprocess.run(
        [sys.executable, "-m", "outpace", "serve", "--print-config", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**kept, "XDG_CONFIG_HOME": str(home), **environment},
    )


def test_what_it_prints_is_a_file_for_it(tmp_path: Path) -> None:
    file = tmp_path / "outpace" / "serve.toml"  # the default place
    file.parent.mkdir()
    file.write_text(CONFIG)
    first = show(tmp_path, "--port", "9", "--no-prefix-cache", OUTPACE_API_KEY="sk-other")
    assert first.returncode == 0, first.stderr
    assert "sk-" not in first.stdout
    assert "port = 9  # command line" in first.stdout
    assert "api-key: set, not shown (environment)" in first.stdout
    assert "grace = 1.5  # file" in first.stdout
    values = tomllib.loads(first.stdout)
    expected = {"model": 'a"b\x7f.gguf', "port": 9, "host": "::1", "kv-cache": 1 << 20, "pin": False}
    assert expected.items() <= values.items()
    assert values["alias"] == ["fast", "slow"]
    assert values["prefix-cache"] is False
    file.write_text(first.stdout)
    again = show(tmp_path)
    assert again.returncode == 0, again.stderr
    assert tomllib.loads(again.stdout) == values
    other = tmp_path / "other.toml"
    other.write_text("port = 7")
    named = tomllib.loads(show(tmp_path, OUTPACE_CONFIG=str(other)).stdout)
    assert (named["port"], named["host"]) == (7, "127.0.0.1")


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "outpace" / "serve.toml"
    file.parent.mkdir()
    file.write_text('prefix-cache-disk = "5MB"\ndraft-persist = true\n')
    assert "prefix-cache-disk = 5000000  # file\n" in show(tmp_path).stdout
    variables = {"OUTPACE_PREFIX_CACHE_BYTES": "7", "OUTPACE_DRAFT_PERSIST": "0"}
    seen = show(tmp_path, **variables).stdout
    assert "prefix-cache-disk = 7  # environment\n" in seen
    assert "draft-persist = false  # environment\n" in seen
    seen = show(tmp_path, "--prefix-cache-disk", "9", "--draft-persist", **variables).stdout
    assert "prefix-cache-disk = 9  # command line\n" in seen
    assert "draft-persist = true  # command line\n" in seen
    file.unlink()
    assert "draft-persist = false  # environment\n" in show(tmp_path, **variables).stdout
    wrong = show(tmp_path, OUTPACE_PREFIX_CACHE_BYTES="7GB")
    assert wrong.returncode == 2
    assert "OUTPACE_PREFIX_CACHE_BYTES is '7GB'" in wrong.stderr


def test_a_key_that_others_may_read(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    for content, mode, warned in (
        ('api-key = "sk-x"', 0o640, True),
        ('api-key = "sk-x"', 0o600, False),
        ("port = 7", 0o644, False),
    ):
        file.write_text(content)
        file.chmod(mode)
        done = show(tmp_path, "--config", str(file))
        assert done.returncode == 0
        assert (f"{file} has a key in it and is open to others; chmod 600 it" in done.stderr) == warned
        assert "sk-x" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("prot = 1", "'prot' is no option of serve; the nearest is 'port'"),
        ("config = 'x'", "'config' is no option"),
        ("port = 'x'", "port: 'x' is not a valid"),
        ("port = 70000", "65535"),
        ("port = true", "switches"),
        ("pin = 1", "switches"),
        ("alias = 'fast'", "a list is needed"),
        ("alias = [[1]]", "neither text nor a number"),
        ("kv-cache = 'big'", "no size"),
        ("port =", "no TOML"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(content)
    done = show(tmp_path, "--config", str(file))
    assert done.returncode == 2
    assert says in done.stderr
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr


def test_no_such_file(tmp_path: Path) -> None:
    done = show(tmp_path, "--config", str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert "can't be read" in done.stderr
