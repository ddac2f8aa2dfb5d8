"""The program itself: help, verbs, errors, exit codes."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import outpace
from outpace.cli.main import VERBS, Verb, build_app, main

OUTPACE = (sys.executable, "-m", "outpace.cli.main")
BOOM = """
from outpace.errors import DownloadError, UsageError
import sys


def usage() -> None:
    raise UsageError("--speed: must be positive; give for instance --speed 2")


def download() -> None:
    raise DownloadError("no network; check it")


def defect() -> None:
    raise ZeroDivisionError("division by zero")


def interrupted() -> None:
    print("some output")
    raise KeyboardInterrupt


def arguments(text: str) -> None:
    print(text)
"""


@pytest.fixture
def boom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Verb, ...]:
    """Verbs that fail in each of the ways there are."""
    (tmp_path / "boom_verbs.py").write_text(BOOM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "boom_verbs", raising=False)
    names = ("usage", "download", "defect", "interrupted", "arguments")
    return tuple(Verb(name, "boom_verbs", name, "") for name in names)


def run(verbs: tuple[Verb, ...], *arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(arguments, verbs)
    code = exited.value.code
    assert isinstance(code, int) or code is None
    return code or 0


@pytest.mark.parametrize(("verb", "code"), [("usage", 2), ("download", 1)])
def test_own_errors_are_one_line_and_an_exit_code(
    boom: tuple[Verb, ...], capsys: pytest.CaptureFixture[str], verb: str, code: int
) -> None:
    assert run(boom, verb) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("outpace: error: ")
    assert captured.err.count("\n") == 1


def test_defects_name_themselves_without_a_traceback(
    boom: tuple[Verb, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(boom, "defect") == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in error
    assert "--debug" in error
    assert "Traceback" not in error


def test_a_verb_that_cannot_be_loaded_is_a_defect_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn_verb.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    torn = (Verb("torn", "torn_verb", "torn", ""),)
    assert run(torn, "torn") == 1
    error = capsys.readouterr().err
    assert error.startswith("outpace: internal error: ModuleNotFoundError")
    assert error.count("\n") == 1
    assert run(torn, "torn", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--debug", "usage"), ("usage", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(
    boom: tuple[Verb, ...], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run(boom, *arguments) == 2
    assert "Traceback" in capsys.readouterr().err


def test_debug_after_the_double_dash_is_an_argument(
    boom: tuple[Verb, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(boom, "arguments", "--", "--debug") == 0
    assert capsys.readouterr().out == "--debug\n"


def test_interrupt_is_130(boom: tuple[Verb, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(boom, "interrupted") == 130
    captured = capsys.readouterr()
    assert captured.out == "some output\n"
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("run", "--nonsense"), ("run", "-n", "many", "--top-k", "2")]
)
def test_wrong_calls_are_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    assert run(VERBS, *arguments) == 2
    error = capsys.readouterr().err
    assert arguments[1 if len(arguments) > 1 else 0] in error
    assert "Traceback" not in error


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_loads_and_explains_itself(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(VERBS, verb.name, "--help") == 0
    assert f"Usage: outpace {verb.name}" in capsys.readouterr().out


def test_help_lists_the_verbs_and_loads_none() -> None:
    script = """
import sys
from outpace.cli.main import main
try:
    main(["--help"])
finally:
    loaded = {name.partition(".")[0] for name in sys.modules} | set(sys.modules)
    heavy = {"numpy", "rich", "jinja2", "fastapi", "torch", "huggingface_hub", "outpace.cli.run"}
    assert not heavy & loaded, heavy & loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f"  {verb.name} " in done.stdout


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(VERBS) in (0, 2)  # typer's choice, which has changed between versions
    captured = capsys.readouterr()
    assert "Usage: outpace" in captured.out + captured.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(VERBS, "--version") == 0
    assert capsys.readouterr().out == f"outpace {outpace.__version__}\n"
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["version"] == outpace.__version__


def test_the_program_collects_cycles_when_a_verb_runs() -> None:
    """The imports are made without; a server that never collected would grow."""
    script = """
import gc, sys
import outpace.cli.main as program
from outpace.__main__ import main
program.main = lambda: print(gc.isenabled(), gc.get_freeze_count() > 1000)
main()
from outpace.cli.collector import paused_collector
with paused_collector():
    print(gc.isenabled())
gc.disable()
with paused_collector():
    pass
print(gc.isenabled())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, text=True, timeout=60
    )
    assert done.stdout.split() == ["True", "True", "False", "False"], done.stderr


def test_it_is_also_a_module_to_run() -> None:
    command = [sys.executable, "-m", "outpace", "--version"]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    assert done.stdout == f"outpace {outpace.__version__}\n", done.stderr


def test_unwanted_verbs_are_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "outpace.cli.chat", raising=False)
    build_app("run")
    assert "outpace.cli.chat" not in sys.modules


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    flood = "def flood() -> None:\n    while True:\n        print('x' * 1000)\n"
    (tmp_path / "flood_verb.py").write_text(flood)
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from outpace.cli.main import Verb, main
main(["flood"], [Verb("flood", "flood_verb", "flood", "")])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_no_defect() -> None:
    for arguments in (["list", "--available"], ["--help"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*OUTPACE, *arguments], stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
            )
        assert done.returncode == 1, arguments
        assert b"No space left on device" in done.stderr
        assert b"defect" not in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("<&-", 2), (">&- 2>&- <&-", 2)])
def test_closed_streams(closed: str, code: int) -> None:
    verb = "list --available" if code == 0 else "run"
    command = f"{shlex.join(OUTPACE)} {verb} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False, timeout=60)
    assert done.returncode == code
    assert b"internal error" not in done.stderr
