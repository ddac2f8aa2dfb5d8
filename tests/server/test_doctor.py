"""`outpace doctor` and `outpace launch` against servers: ours, one with a key, and one that is none."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import RunningServer, running

from outpace.clients.catalog import CLIENTS, Target
from outpace.clients.doctor import CHECKS, examine
from outpace.clients.http import Server
from outpace.errors import OutpaceError
from outpace.llm import LLM
from outpace.server.settings import ServerSettings


def outpace(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "outpace.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | environment,
    )


def test_nothing_is_wrong_with_our_own_server(native_server: RunningServer) -> None:
    findings = list(examine(Server(native_server.url), native_server.name))
    assert {finding.name: finding.problem for finding in findings if finding.problem} == {}
    assert len(findings) == 15


@pytest.fixture
def odd_server() -> Iterator[str]:
    """A server that lists a model and answers everything else with an empty object."""

    class Odd(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = b'{"data": [{"id": "odd"}]}' if self.path == "/v1/models" else b"{}"
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815 - the names that the base class calls

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_is_wrong_with_another_server_is_said(odd_server: str) -> None:
    done = outpace("doctor", "--url", odd_server, "--json")
    assert done.returncode == 1
    findings = json.loads(done.stdout)
    assert [finding["name"] for finding in findings if not finding["problem"]] == ["/v1/models"]
    assert len(findings) == 15
    assert findings[0]["problem"].startswith("HEAD /: status 501")
    assert "not of the form" in findings[2]["problem"]
    socket = next(finding for finding in findings if "websocket" in finding["name"])
    assert "valid HTTP response" in socket["problem"]
    lines = outpace("doctor", "--url", odd_server).stdout.splitlines()
    assert lines[1].startswith("FAILS / (claude)")
    assert lines[3].startswith("ok    /v1/models")
    assert lines[4].startswith("FAILS /v1/chat/completions (aider")


def test_no_server_is_said_with_the_remedy() -> None:
    done = outpace("doctor", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "outpace serve" in done.stderr


@pytest.fixture
def locked_server(served_llm: LLM) -> Iterator[RunningServer]:
    with running(served_llm, ServerSettings(port=0, api_key="open sesame")) as state:
        yield state


def test_a_key_is_asked_for_and_passed_on(locked_server: RunningServer) -> None:
    refused = outpace("launch", "aider", "--show", "--url", locked_server.url, OUTPACE_API_KEY="")
    assert refused.returncode == 1
    assert "401" in refused.stderr
    shown = outpace("launch", "aider", "--show", "--url", locked_server.url, OUTPACE_API_KEY="open sesame")
    assert "OPENAI_API_KEY='open sesame'" in shown.stdout


@pytest.mark.parametrize("name", list(CLIENTS))
def test_every_client_is_told_where_the_server_is(server: RunningServer, name: str) -> None:
    done = outpace("launch", name, "--show", "--url", server.url, "--", "--some-option", "x y")
    assert done.returncode == 0, done.stderr
    assert server.url in done.stdout
    assert "test-model" in done.stdout
    assert done.stdout.rstrip().endswith("--some-option 'x y'")


def test_opencode_is_told_to_leave_room_for_a_prompt() -> None:
    """It summarizes the session once context - output tokens are full."""
    setup = CLIENTS["opencode"].setup(Target("http://127.0.0.1:1", "test-model", "", 32768))
    config = json.loads(setup.environment["OPENCODE_CONFIG_CONTENT"])
    assert config["provider"]["outpace"]["models"]["test-model"]["limit"] == {
        "context": 32768,
        "output": 8192,
    }


def test_a_client_is_started_with_its_settings(server: RunningServer, tmp_path: Path) -> None:
    """The client is a script that does what clients do first: it asks the server which models there are."""
    script = tmp_path / "aider"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys, urllib.request\n"
        "answer = urllib.request.urlopen(os.environ['OPENAI_API_BASE'] + '/models')\n"
        "print(json.load(answer)['data'][0]['id'], sys.argv[1:])\n"
    )
    script.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = outpace("launch", "aider", "--url", server.url, "--", "--yes", PATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("test-model ['--model', 'openai/test-model',")
    assert done.stdout.rstrip().endswith("'--yes']")


def test_what_cannot_be_launched_is_said(server: RunningServer, tmp_path: Path) -> None:
    unknown = outpace("launch", "emacs", "--url", server.url)
    assert unknown.returncode == 2
    assert "there are: claude, codex" in unknown.stderr
    missing = outpace("launch", "codex", "--url", server.url, PATH=str(tmp_path))
    assert missing.returncode == 2
    assert "npm install -g @openai/codex" in missing.stderr
    other = outpace("launch", "aider", "--show", "--url", server.url, "--model", "gone")
    assert other.returncode == 1
    assert "it has: test-model" in other.stderr
    listed = outpace("launch", PATH=str(tmp_path)).stdout.splitlines()
    assert len(listed) == len(CLIENTS)
    assert "not installed: pip install aider-chat" in "\n".join(listed)


class Twisted:
    """Our own server, as somebody in between passes its answers on: with something changed in them."""

    def __init__(self, url: str, *changes: tuple[str, str]) -> None:
        twisted = self

        class Between(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                head = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
                with urllib.request.urlopen(
                    urllib.request.Request(url + self.path, body, head, method="POST")
                ) as answer:
                    text = answer.read().decode()
                for before, after in changes:
                    twisted.num_changed += text.count(before)
                    text = text.replace(before, after)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.num_changed = 0
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Between)

    def __enter__(self) -> Server:
        threading.Thread(target=self.server.serve_forever).start()
        return Server(f"http://127.0.0.1:{self.server.server_port}")

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


TOOLS = "the same with a tool that must be called"
CUSTOM = "the same with a custom tool and its grammar"


@pytest.mark.parametrize(
    ("name", "client", "before", "after", "said"),
    [
        (TOOLS, "claude", '"stop_reason":"tool_use"', '"stop_reason":"end_turn"', "stop_reason is"),
        (TOOLS, "claude", '"input_json_delta"', '"text_delta"', "stream's input"),
        (TOOLS, "claude", '"name":"get_time"', '"name":"other"', "is not"),
        (TOOLS, "codex", '"type":"function_call"', '"type":"message"', "is not"),
        (TOOLS, "codex", '"call_id":"', '"call_id":"","was":"', "has no id"),
        (CUSTOM, "codex", '"input":"', '"input":"1', "grammar does not allow"),
        (CUSTOM, "codex", "response.output_item.done", "response.other", "no item is done"),
    ],
)
def test_what_is_nearly_right_is_wrong(
    native_server: RunningServer, name: str, client: str, before: str, after: str, said: str
) -> None:
    (check,) = (check for each, needed_by, check in CHECKS if (each, needed_by) == (name, client))
    twisted = Twisted(native_server.url, (before, after))
    with twisted as server, pytest.raises((OutpaceError, LookupError, ValueError), match=said):
        check(server, native_server.name)
    assert twisted.num_changed > 0
