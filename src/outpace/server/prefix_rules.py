"""Rules that keep what changes between an agent's sessions out of the beginning of its prompts.

The prefix cache serves a prompt up to its first new token. Some agents write the folder, the date or a
checksum of the day into their system prompt, before thousands of tokens that are the same in every session:
all of these are then read anew for each folder and each day. A rule knows one such fragment by its exact
shape and either drops it, where it is for the accounts of somebody else's service, or moves it, word for
word, to the beginning of the first user message, which stands behind the system prompt and the tools.

Rules look at the system messages that begin a conversation, never at what a user or a tool wrote. The same
request always becomes the same prompt.
"""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from outpace.errors import UsageError

__all__ = ["KNOWN_RULES", "PrefixRule", "apply_rules", "read_rules"]

_ACTIONS = ("drop", "move")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PrefixRule:
    """One kind of fragment: `pattern` in a system message, where `^` is the beginning of any line."""

    name: str
    client: str  # who sends it, for people
    pattern: re.Pattern[str]
    action: Literal["drop", "move"]


def _rule(name: str, client: str, action: Literal["drop", "move"], pattern: str) -> PrefixRule:
    return PrefixRule(name, client, re.compile(pattern, re.MULTILINE), action)


KNOWN_RULES = (
    # The service's accounting, with a checksum that changes from request to request.
    _rule("billing-header", "Claude Code", "drop", r"^x-anthropic-billing-header:[^\n]*(?:\n|\Z)"),
    # "Working directory: ..." and further lines "Name: value", the date among them.
    _rule(
        "env-block",
        "OpenCode; Claude Code before version 2",
        "move",
        r"^(?:Here is (?:some )?useful information about the environment you are running in:\n)?"
        r"<env>\n *Working directory: [^\n]*\n(?: *[A-Z][^:\n]{0,60}: [^\n]*\n){1,20}</env>(?:\n|\Z)",
    ),
    _rule(
        "environment-section",
        "Claude Code",
        "move",
        r"^# Environment\nYou have been invoked in the following environment: ?\n"
        r" *- Primary working directory: [^\n]*(?:\n|\Z)(?: *- [^\n]*(?:\n|\Z))*",
    ),
    # The sentences that name the project's own folder; what the memory is for follows, and stays.
    _rule(
        "memory-folder",
        "Claude Code",
        "move",
        r"^You have a persistent file-based memory at `[^`\n]+`\."
        r"(?: This directory already exists [^(\n]*\([^)\n]*\)\.)?(?: |\n|\Z)",
    ),
)


def apply_rules(messages: list[dict[str, Any]], rules: Sequence[PrefixRule]) -> list[dict[str, Any]]:
    """The conversation with the rules applied: the same list where none fits.

    `messages` are in the form that chat templates read; nothing in them is changed in place. Without a user
    message there is no place to move to, and then nothing is moved.
    """
    user = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    changed = list(messages)
    moved: list[str] = []
    for i, message in enumerate(messages):
        if message["role"] != "system":
            break
        text: str = message["content"]
        for rule in rules:
            if rule.action == "move" and user is None:
                continue
            found = [match[0] for match in rule.pattern.finditer(text) if match[0]]
            if not found:
                continue
            _log.debug("prefix rule %s applied", rule.name)
            text = rule.pattern.sub("", text)
            if rule.action == "move":
                moved += (fragment.strip("\n") for fragment in found)
        if text is not message["content"]:
            changed[i] = {**message, "content": text}
    if moved and user is not None:
        content = "\n\n".join([*moved, changed[user]["content"]])
        changed[user] = {**changed[user], "content": content}
    # A system message that was nothing else would be an empty one, which some templates refuse.
    return [
        message
        for message, before in zip(changed, messages, strict=True)
        if message is before or message["role"] != "system" or message["content"].strip()
    ]


def read_rules(path: Path) -> tuple[PrefixRule, ...]:
    """The rules of a TOML file of `[[rule]]` tables: name, pattern, action, and perhaps client.

    Raises `UsageError` for a file that can't be read or isn't so.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("rule")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--prefix-rules {path}: can't be read: {error}") from None
    if not isinstance(tables, list) or not tables:
        raise UsageError(f"--prefix-rules {path}: there is no [[rule]] in it")
    return tuple(
        _read_rule(table, f"--prefix-rules {path}: rule {number}")
        for number, table in enumerate(cast("list[Any]", tables), 1)
    )


def _read_rule(table: Any, where: str) -> PrefixRule:
    known = {"name", "client", "pattern", "action"}
    if not isinstance(table, dict) or not all(
        isinstance(value, str) for value in cast("Mapping[str, Any]", table).values()
    ):
        raise UsageError(f"{where}: name, client, pattern and action are strings")
    said = cast("dict[str, str]", table)
    if strange := sorted(said.keys() - known):
        raise UsageError(f"{where}: there is no {strange[0]!r}; write name, client, pattern, action")
    if missing := sorted({"name", "pattern", "action"} - said.keys()):
        raise UsageError(f"{where}: {missing[0]!r} is missing")
    if said["action"] not in _ACTIONS:
        raise UsageError(f"{where}: action must be 'drop' or 'move', not {said['action']!r}")
    try:
        pattern = re.compile(said["pattern"], re.MULTILINE)
    except re.error as error:
        raise UsageError(f"{where}: pattern: {error}") from None
    if pattern.search(""):
        raise UsageError(f"{where}: pattern fits where there is nothing; make it more exact")
    action: Literal["drop", "move"] = "drop" if said["action"] == "drop" else "move"
    return PrefixRule(said["name"], said.get("client", ""), pattern, action)
