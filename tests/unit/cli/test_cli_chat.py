"""`outpace chat`: as a filter, and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory
from typer.testing import Result

from outpace import LLM, SamplingParams
from outpace.cli import chat
from outpace.cli.status_line import StatusLine

Invoke = Callable[..., Result]


def test_lines_in_answers_out(invoke: Invoke, null_model: tuple[str, ...], tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    lines = f"/system Be brief.\nHello\n\nAnd now?\n/save {saved}\n/what\n/help\n"
    result = invoke("chat", null_model[1], *null_model[2:], "-n", "8", "--seed", "1", stdin=lines)
    assert result.exit_code == 0, result.output
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [messages[0]["content"], messages[1]["content"]] == ["Be brief.", "Hello"]
    for answer in (messages[2], messages[4]):
        assert answer["content"]
        assert answer["content"] in result.stdout
    assert "There is no command /what." in result.stdout
    assert "Ctrl-D leaves" in result.stdout


def test_reset_forgets(invoke: Invoke, null_model: tuple[str, ...], tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    result = invoke(
        "chat", null_model[1], *null_model[2:], "-n", "4", stdin=f"Hello\n/reset\n/save {saved}\n/save\n"
    )
    assert json.loads(saved.read_text())["messages"] == []
    assert "Where to?" in result.stdout


def test_what_cannot_be_saved_does_not_end_the_chat(
    invoke: Invoke, null_model: tuple[str, ...], tmp_path: Path
) -> None:
    lines = f"/save {tmp_path}\n/help\n"
    result = invoke("chat", null_model[1], *null_model[2:], stdin=lines)
    assert result.exit_code == 0
    assert "Not saved: " in result.stdout
    assert "/reset" in result.stdout


def test_too_long_a_conversation_goes_on(invoke: Invoke, null_model: tuple[str, ...]) -> None:
    options = (*null_model[2:-1], "64", "-n", "4")
    result = invoke("chat", null_model[1], *options, stdin="word " * 100 + "\nHello\n")
    assert result.exit_code == 0, result.output
    assert "the context holds 64" in result.stderr
    assert result.stdout.strip()  # the second one is answered


def test_bad_options_are_2(invoke: Invoke, null_model: tuple[str, ...]) -> None:
    result = invoke("chat", null_model[1], *null_model[2:], "--top-p", "7", stdin="Hello\n")
    assert result.exit_code == 2
    assert "top_p" in result.stderr


PROMPT = r"\x1b\[\?2004h"  # prompt_toolkit asks the terminal for bracketed paste: it takes a line now

# Makes stdin the terminal whose Ctrl-C reaches the program, of 24 lines of 80, and becomes the program.
TAKE_TERMINAL = """
import fcntl, os, struct, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, pattern: str, timeout: float = 60) -> None:
        """Read until `pattern` is in what came since the last call."""
        end = time.monotonic() + timeout
        while not (match := re.search(pattern, self.seen, re.DOTALL)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._ours, 4096).decode(errors="replace")
                except OSError as error:  # the program has left
                    raise AssertionError(f"no {pattern!r} in {self.seen!r}") from error
        self.seen = self.seen[match.end() :]

    def close(self) -> None:
        os.close(self._ours)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def terminal(null_model: tuple[str, ...], tmp_path: Path) -> Iterator[Terminal]:
    options = (*null_model[2:], "--max-context", "8192", "--kv-cache", "64MiB", "--ignore-eos")
    command = [sys.executable, "-m", "outpace.cli.main", "chat", null_model[1], *options]
    running = Terminal(
        command,
        {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
    )
    yield running
    running.close()


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for("Ctrl-D leaves")
    terminal.wait_for(PROMPT)
    terminal.type("Hello\r")
    terminal.wait_for(r"\d+ tokens · [\d.]+ tokens/s")  # live, at the bottom
    terminal.type("\x03")
    terminal.wait_for(r"TTFT \d+ ms")  # the answer ended; the program did not
    terminal.wait_for(PROMPT)
    terminal.type("/help\r")
    terminal.wait_for("forget the conversation")
    terminal.wait_for(PROMPT)
    terminal.type("\x04")  # Ctrl-D
    assert terminal.process.wait(timeout=60) == 0
    assert "+Hello" in (tmp_path / "outpace" / "chat_history").read_text()


def test_the_history_is_its_owners_alone(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for(PROMPT)
    history = tmp_path / "outpace" / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert history.parent.stat().st_mode & 0o777 == 0o700


def test_a_history_that_cannot_be_kept_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outpace").write_text("no folder")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert isinstance(chat._history(), InMemoryHistory)
    assert "not kept" in capsys.readouterr().err


def test_a_question_that_was_stopped_before_an_answer_is_dropped(
    model_135m: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Iterator[object]:
        raise KeyboardInterrupt
        yield

    with LLM(model_135m, backend="null", kv_cache_bytes=8 << 20, max_context=1024) as llm:
        conversation = chat.Conversation(llm, SamplingParams(max_tokens=4))
        with monkeypatch.context() as patched:
            patched.setattr(chat, "checked", interrupted)
            conversation.answer("A long text")
        assert conversation.messages == []
        assert "dropped" in capsys.readouterr().out
        conversation.answer("Hello")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]


@pytest.mark.parametrize(("variable", "value"), [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_terminals_that_want_no_sequences(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    shown = FakeTerminal()
    with StatusLine(shown) as status:
        status.update("5 tokens")
    assert "\x1b[2m" not in shown.getvalue()
    assert variable != "TERM" or shown.getvalue() == ""


class FakeTerminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_ctrl_c_just_after_an_answer_does_not_end_the_chat(
    model_135m: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_llm: LLM) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "probe_bandwidth", interrupted)
    monkeypatch.setattr(sys, "stdout", FakeTerminal())
    lines = iter(["Hello", "And now?", None])
    with LLM(model_135m, backend="null", kv_cache_bytes=8 << 20, max_context=1024) as llm:
        conversation = chat.Conversation(llm, SamplingParams(max_tokens=4))
        chat.talk(conversation, lambda: next(lines))
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2


def test_the_status_line_gives_the_terminal_back() -> None:
    terminal = FakeTerminal()

    def interrupted() -> None:
        with StatusLine(terminal) as status:
            status.update("fast")
            assert "fast" in terminal.getvalue()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().rstrip("\x1b8").endswith("\x1b[r")


def test_the_status_line_writes_nothing_into_a_file() -> None:
    file = StringIO()
    with StatusLine(file) as status:
        status.update("fast")
    assert file.getvalue() == ""
