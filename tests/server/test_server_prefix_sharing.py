"""Sessions of agents that differ in what the rules know share the beginning of their prompts: over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import RunningServer
from test_serve_command import serving

RULES = "Be careful with files. " * 30
TOOLS = [
    {
        "name": "Read",
        "description": "Reads a file. " * 20,
        "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}},
    }
]


def billed(checksum: str) -> dict[str, Any]:
    """Claude Code's system prompt: its first block is for the accounts of the service."""
    line = f"x-anthropic-billing-header: cc_version=2.1.197.{checksum}; cc_entrypoint=cli; cch={checksum};"
    return {
        "system": [{"type": "text", "text": line}, {"type": "text", "text": RULES}],
        "messages": [{"role": "user", "content": "Hi"}],
    }


def committed(commit: str) -> dict[str, Any]:
    """Its last words before the tools."""
    state = (
        "gitStatus: This is the git status at the start of the conversation. Note that it is a snapshot.\n\n"
        "Current branch: main\n\nMain branch (you will usually use this for PRs): main\n\n"
        f"Status:\n(clean)\n\nRecent commits:\n{commit} Prices in cents"
    )
    return {"system": f"S\n\n{state}", "tools": TOOLS, "messages": [{"role": "user", "content": "Hi"}]}


def dated(day: str) -> dict[str, Any]:
    """Its first user message: reminders, and what the user wrote."""
    texts = (
        "<system-reminder>\nUse the following context:\n# currentDate\n"
        f"Today's date is {day}.\n\nIMPORTANT: it may not be relevant.\n</system-reminder>\n\n",
        f"<system-reminder>\nThese skills are there:\n{RULES}\n</system-reminder>\n",
        "Hi",
    )
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]}


PAIRS = [
    (billed("a1f3b"), billed("07c2e")),
    (committed("dec8e91"), committed("0a1b2c3")),
    (dated("2026-11-27"), dated("2026-12-01")),
]


def cached_tokens(url: str, body: dict[str, Any]) -> int:
    """Ask; how many tokens of the prompt the cache had."""
    answer = httpx.post(f"{url}/v1/messages", json={"model": "m", "max_tokens": 1, **body}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["cache_read_input_tokens"]


@pytest.mark.parametrize("pair", PAIRS, ids=["billing", "commit", "date"])
def test_sessions_share_their_beginning(server: RunningServer, pair: tuple[dict[str, Any], ...]) -> None:
    first, second = ({"model": "test-model", **body} for body in pair)
    cached_tokens(server.url, first)
    assert cached_tokens(server.url, second) >= 96


def test_the_rules_can_be_left_out(model_135m: Path) -> None:
    with serving(model_135m, "--no-canonicalize") as (_, url):
        for first, second in PAIRS:
            cached_tokens(url, {"model": model_135m.stem, **first})
            assert cached_tokens(url, {"model": model_135m.stem, **second}) <= 64


def test_rules_of_a_file_are_added(model_135m: Path, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text("[[rule]]\nname = 'turn'\npattern = '^Session \\d+\\n'\naction = 'move'\n")

    def begun(line: str) -> dict[str, Any]:
        return {"system": f"{line}\n{RULES}", "messages": [{"role": "user", "content": "Hi"}]}

    pairs = [(begun("Session 1"), begun("Session 2")), PAIRS[0], (begun("Sitting 1"), begun("Sitting 2"))]
    with serving(model_135m, "--prefix-rules", str(path)) as (_, url):
        cached: list[int] = []
        for first, second in pairs:
            cached_tokens(url, {"model": model_135m.stem, **first})
            cached.append(cached_tokens(url, {"model": model_135m.stem, **second}))
    assert min(cached[:2]) >= 96, "those of the file and those that are known"
    assert cached[2] == 0


def test_a_file_that_is_wrong_ends_the_start(model_135m: Path, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text("[[rule]]\nname = 'a'")
    said = "'pattern' is missing"
    with pytest.raises(AssertionError, match=said), serving(model_135m, "--prefix-rules", str(path)):
        pass
