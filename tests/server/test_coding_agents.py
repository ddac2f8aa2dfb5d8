"""Real coding agents, started by `outpace launch`, against a real server: greetings, calls, edited files.

`make clients` installs them, `make test-clients` runs this. A client that is not there is skipped, and pytest
says so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from serving import RunningServer, native_is_built, running

from outpace.clients.catalog import CLIENTS
from outpace.llm import LLM
from outpace.server.settings import ServerSettings

LIMIT = 600  # seconds: prompts of a thousand tokens take their time on a slow machine
WRONG = "def add(a, b):\n    return a - b\n"
LIKELIEST = {"temperature": 0.0, "repetition_penalty": 1.05}
RIGHT = "def add(a, b):\n    return a + b"
pytestmark = pytest.mark.timeout(2 * LIMIT)


@dataclass(frozen=True)
class Agent:
    """Starts one client in a home and a folder of its own."""

    name: str
    path: str
    home: Path
    folder: Path
    server: RunningServer

    def do(self, *arguments: str, until: Callable[[], bool] | None = None, **environment: str) -> str:
        """What the client says; it must end well, and the server must have refused nothing.

        Where `until` holds before, it has done enough and is ended: small models repeat themselves for long.
        """
        self.home.mkdir(exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "outpace.cli.main",
            "launch",
            self.name,
            "--url",
            self.server.url,
            "--",
        ]
        with (
            (self.folder.parent / "said").open("w+b") as said,
            subprocess.Popen(
                [*command, *arguments],
                cwd=self.folder,
                env={
                    "HOME": str(self.home),
                    "PATH": self.path,
                    "TERM": "dumb",
                    "LANG": "C.UTF-8",
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT if until is not None else None,
                process_group=0,
            ) as client,
        ):
            end = time.monotonic() + LIMIT
            while client.poll() is None and time.monotonic() < end and not (until is not None and until()):
                time.sleep(0.1)
            enough = client.poll() is None and time.monotonic() < end
            with suppress(ProcessLookupError):
                os.killpg(client.pid, signal.SIGTERM)
            client.wait(60)
            said.seek(0)
            text = said.read().decode(errors="replace")
        assert enough or client.returncode == 0, text[-3000:]
        return text


def metric(server: RunningServer, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def refused(server: RunningServer) -> list[str]:
    """Requests that were answered with an error."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    counted = [line for line in lines if line.startswith("outpace:http_requests_total")]
    return [line for line in counted if 'status="2' not in line]


@pytest.fixture(scope="module")
def coder(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    if not os.environ.get("OUTPACE_TEST_CLIENTS"):
        pytest.skip("NOT TESTED: coding agents are not here: make clients test-clients")
    if not native_is_built():
        pytest.skip("NOT TESTED: the native core is not built")
    model: Path = request.getfixturevalue("model_15b")
    # What small models need to call tools at all: the likeliest token, and arguments of the tools' schemas.
    settings = ServerSettings(port=0, sampling=LIKELIEST, constrain_tools=True)
    with LLM(model, max_context=32768, kv_cache_bytes=2 << 30) as llm, running(llm, settings) as state:
        yield state


@pytest.fixture
def agent(request: pytest.FixtureRequest, coder: RunningServer, tmp_path: Path) -> Iterator[Agent]:
    name: str = request.param
    root = Path(os.environ["OUTPACE_TEST_CLIENTS"]).absolute()
    folders = [root / "node_modules" / ".bin", root / name / "bin"]
    if not any((folder / CLIENTS[name].program).exists() for folder in folders):
        pytest.skip(f"NOT TESTED: {name} is not in {root}: make clients")
    path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
    folder = tmp_path / "work"
    folder.mkdir()
    yield Agent(name, path, tmp_path / "home", folder, coder)
    assert refused(coder) == [], "the server answered a client with an error"


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("agent", [name], indirect=True)


@of("aider")
def test_aider_edits_a_file(agent: Agent) -> None:
    file = agent.folder / "calc.py"
    file.write_text(WRONG)
    task = "The function add in calc.py must return a + b. Fix it."
    quiet = ("--no-git", "--yes-always", "--analytics-disable")
    said = agent.do(*quiet, "--message", task, "calc.py")
    assert "Applied edit to calc.py" in said
    assert file.read_text().strip() == RIGHT


@of("claude")
def test_claude_code_greets_and_writes_a_file_by_a_tool(agent: Agent) -> None:
    """With a short prompt of its own: a small model loses itself in Claude Code's."""
    briefly = ("--system-prompt", "You are a coding agent. Use the tools.")
    assert "hello" in agent.do("-p", "Say hello.", *briefly, "--tools", "").lower()
    before = metric(agent.server, "outpace:prefix_cache_hits_total")
    task = f"Use the Write tool: write the text hello into the file {agent.folder}/hello.txt."
    agent.do("-p", task, *briefly, "--tools", "Write", "--permission-mode", "acceptEdits")
    assert (agent.folder / "hello.txt").read_text().strip() == "hello"
    hits = metric(agent.server, "outpace:prefix_cache_hits_total") - before
    assert hits >= 300, "the turn after the call begins as the one before"


@of("mini")
def test_mini_swe_agent_runs_a_command(agent: Agent) -> None:
    """In its form of commands in code fences, which small models manage better than its tool."""
    textbased = ("-c", "mini_textbased.yaml", "--model-class", "litellm_textbased")
    limits = ("-c", "model.model_kwargs.temperature=0", "-c", "agent.step_limit=3")
    task = "Run this command: echo hello > hello.txt"
    agent.do(*textbased, *limits, "-y", "--exit-immediately", "-t", task)
    assert (agent.folder / "hello.txt").read_text().strip() == "hello"


COPY = "Run the command: cat note.txt > copy.txt"
NAME = "What is your name? Answer in words, without a tool."


def check_name_and_copy(agent: Agent, *arguments: str, **environment: str) -> None:
    """It answers in words, and it runs a command."""
    (agent.folder / "note.txt").write_text("the word is banana\n")
    assert agent.do(*arguments, NAME, **environment).strip()
    assert not (agent.folder / "copy.txt").exists()
    copy = agent.folder / "copy.txt"
    agent.do(*arguments, COPY, until=lambda: copy.exists() and copy.stat().st_size > 0, **environment)
    assert copy.read_text() == "the word is banana\n"


@of("codex")
def test_codex_answers_and_runs_a_command(agent: Agent) -> None:
    """With short instructions and few tools, which a small model needs; outside of its sandbox."""
    instructions = agent.folder / "instructions.md"
    instructions.write_text(
        "You are a coding agent. Answer briefly. Only to run a shell command, call the tool exec_command "
        "with its cmd."
    )
    settings = (
        f'model_instructions_file="{instructions}"',
        'web_search="disabled"',
        "include_environment_context=false",
        "skills.bundled.enabled=false",
        "skills.include_instructions=false",
    )
    briefly = [part for each in settings for part in ("-c", each)]
    briefly += ["--disable", "multi_agent", "--disable", "goals"]
    free = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    check_name_and_copy(agent, "exec", *free, *briefly)


@of("qwen")
def test_qwen_code_answers_and_runs_a_command(agent: Agent) -> None:
    """Without its memory and most of its tools, which take 4,000 tokens."""
    settings = {
        "tools": {
            "core": ["run_shell_command"],
            "exclude": ["tool_search", "agent", "task_stop", "send_message", "skill"],
        },
        "memory": {"enableManagedAutoMemory": False, "enableManagedAutoDream": False},
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"disableAutoUpdate": True},
    }
    (agent.folder / ".qwen").mkdir()
    (agent.folder / ".qwen" / "settings.json").write_text(json.dumps(settings))
    system = agent.folder / "system.md"
    system.write_text("You are a coding agent. Use the tools. Answer briefly.")
    check_name_and_copy(agent, "-y", "-p", QWEN_SYSTEM_MD=str(system))


@of("opencode")
def test_opencode_answers_and_runs_a_command(agent: Agent) -> None:
    """With a short prompt and one tool, and few steps: a small model does not see when it is done."""
    tools = {"*": False, "bash": True}
    build = {"prompt": "You are a coding agent. Answer briefly.", "tools": tools, "steps": 3}
    off = {"disable": True}
    config = {
        "agent": {"build": build, "title": off, "summary": off},
        "permission": {"bash": "allow", "doom_loop": "allow"},
        "share": "disabled",
        "snapshot": False,
    }
    (agent.folder / "opencode.json").write_text(json.dumps(config))
    check_name_and_copy(agent, "run")
