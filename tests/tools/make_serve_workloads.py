"""Make workloads for `outpace bench serve` of the work that agents give a server: FOLDER, in JSON lines.

session.jsonl: one agent that has read about 8,000 tokens of source, four turns.
subagents.jsonl: eight agents that share 6,000 tokens and have 2,000 of their own, two turns each, in rounds.
streams.jsonl: sixteen different short questions with answers of up to 128 tokens.

The texts are this project's own sources, so the lengths in tokens are near these, not exact.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

CHARS_PER_TOKEN = 3.6  # of Python source in Qwen's vocabulary
SOURCES = Path(__file__).resolve().parents[2] / "src" / "outpace"
TASK = "Say in a few sentences what this code does and where it could fail."
DONE = "It schedules requests, packs a batch and steps the model. " * 8


def source_text() -> str:
    return "\n".join(f"# {path.name}\n{path.read_text()}" for path in sorted(SOURCES.rglob("*.py")))


def take(text: str, start: int, tokens: int) -> str:
    first = int(start * CHARS_PER_TOKEN)
    return text[first : first + int(tokens * CHARS_PER_TOKEN)]


def line(messages: list[dict[str, Any]], max_tokens: int) -> str:
    return json.dumps({"messages": messages, "max_tokens": max_tokens}) + "\n"


def say(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = source_text()
    messages = [say("system", "You are a coding agent."), say("user", take(text, 0, 7900) + "\n\n" + TASK)]
    turns = []
    for number in range(4):
        turns.append(line(messages, 200))
        messages = [*messages, say("assistant", DONE), say("user", f"Look again, at part {number + 2}.")]
    (folder / "session.jsonl").write_text("".join(turns))

    shared = say("system", take(text, 10_000, 6000))
    agents = [[shared, say("user", take(text, 20_000 + 2000 * number, 2000))] for number in range(8)]
    rounds = [line(agent, 64) for agent in agents]
    rounds += [line([*agent, say("assistant", DONE), say("user", TASK)], 64) for agent in agents]
    (folder / "subagents.jsonl").write_text("".join(rounds))

    asks = [
        f"Write a Python function that computes the {number}-th power of a matrix." for number in range(2, 18)
    ]
    (folder / "streams.jsonl").write_text("".join(line([say("user", ask)], 128) for ask in asks))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the workloads are written")
    main(parser.parse_args().folder)
