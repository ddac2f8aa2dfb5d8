"""Rules that keep what changes between an agent's sessions out of the beginning of its prompts.

The prefix cache serves a prompt up to its first new token. Some agents write the folder, the date, the state
of the repository or a checksum of the day before thousands of tokens that are the same in every session: all
of these are then read anew for each folder, each day or each commit. A rule knows one such fragment by its
exact shape and either drops it, where it is for the accounts of somebody else's service, or moves it, word
for word, to the place in front of what the user wrote first: behind the system prompt, the tools and the
reminders that the agent begins the first user message with. The model reads it all the same.

Rules look at the system messages that begin a conversation and at these reminders, never at what a user or a
tool wrote. The same request always becomes the same prompt, and as a conversation grows, nothing moves.
ARCHITECTURE.md lists the rules.
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
_PLACES = ("system", "reminder")
_FIELDS = ("name", "pattern", "action", "client", "place")
_OPEN, _CLOSE = "<system-reminder>", "</system-reminder>"
_REMINDER = re.compile(rf"({_OPEN}\n?)(.*?)({_CLOSE}\n*)", re.DOTALL)
_REMINDERS = re.compile(rf"\s*(?:{_REMINDER.pattern})+", re.DOTALL)  # those that a message begins with
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PrefixRule:
    """One kind of fragment: `pattern`, where `^` is the beginning of any line.

    `place`: in a system message, or in an agent's reminder at the beginning of the first user message.
    """

    name: str
    client: str  # who sends it, for people
    pattern: re.Pattern[str]
    action: Literal["drop", "move"]
    place: Literal["system", "reminder"] = "system"


def _rule(
    name: str,
    client: str,
    action: Literal["drop", "move"],
    pattern: str,
    place: Literal["system", "reminder"] = "system",
) -> PrefixRule:
    return PrefixRule(name, client, re.compile(pattern, re.MULTILINE), action, place)


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
    # Branch, changed files and the last commits, at the very end: before the tools, that is.
    _rule(
        "git-status",
        "Claude Code",
        "move",
        r"^gitStatus: This is the git status at the start of the conversation\.[^\n]*\n"
        r"\nCurrent branch: [^\n]*\n\nMain branch [^\n]*\n(?:\nGit user: [^\n]*\n)?"
        r"\nStatus:\n(?:[^\n]+\n)*\nRecent commits:(?:\n[0-9a-f]{4,40} [^\n]*){0,20}(?:\n|\Z)",
    ),
    # The day, in front of lists of tools, skills and files. Its apostrophe is one of four.
    _rule(
        "reminder-date",
        "Claude Code; Qwen Code",
        "move",
        r"^(?:# currentDate\n)?Today['\u2019\u02bc\u02b9]s date is [^\n]{1,80}(?:\n|\Z)",
        "reminder",
    ),
)


def apply_rules(messages: list[dict[str, Any]], rules: Sequence[PrefixRule]) -> list[dict[str, Any]]:
    """The conversation with the rules applied: the same list where none fits.

    `messages` are in the form that chat templates read; nothing in them is changed in place. Without a user
    message there is no place to move to, and then nothing is moved.
    """
    user = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if user is None:
        rules = [rule for rule in rules if rule.action == "drop"]
    changed = list(messages)
    moved: list[str] = []
    for i, message in enumerate(messages):
        if message["role"] != "system":
            break
        text = _take(message["content"], rules, "system", moved)
        if text is not message["content"]:
            changed[i] = {**message, "content": text}
    if user is not None:
        content = _move_to(messages[user]["content"], rules, moved)
        if content is not messages[user]["content"]:
            changed[user] = {**messages[user], "content": content}
    # A system message that was nothing else would be an empty one, which some templates refuse.
    return [
        message
        for message, before in zip(changed, messages, strict=True)
        if message is before or message["role"] != "system" or message["content"].strip()
    ]


def _take(text: str, rules: Sequence[PrefixRule], place: str, moved: list[str]) -> str:
    """`text` without the fragments of the rules for this place; those that move are appended to `moved`."""
    for rule in rules:
        found = [match[0] for match in rule.pattern.finditer(text) if match[0]] if rule.place == place else ()
        if not found:
            continue
        _log.debug("prefix rule %s applied", rule.name)
        text = rule.pattern.sub("", text)
        if rule.action == "move":
            moved += (fragment.strip("\n") for fragment in found)
    return text


def _move_to(content: str, rules: Sequence[PrefixRule], moved: list[str]) -> str:
    """The first user message with all that moves behind the reminders that it begins with."""
    begin = _REMINDERS.match(content)
    before = begin[0] if begin else ""
    reminded: list[str] = []

    def take(reminder: re.Match[str]) -> str:
        text = _take(reminder[2], rules, "reminder", reminded)
        if text is reminder[2]:
            return reminder[0]
        return reminder[1] + text + reminder[3] if text.strip() else ""

    reminders, rest = _REMINDER.sub(take, before), content[len(before) :]
    if reminded:
        moved = [*moved, "\n".join([_OPEN, *reminded, _CLOSE])]
    if not moved:
        return content if reminders == before else reminders + rest
    return "\n\n".join(filter(None, [reminders.strip(), *moved, rest]))


def read_rules(path: Path) -> tuple[PrefixRule, ...]:
    """The rules of a TOML file of `[[rule]]` tables: name, pattern, action, and perhaps client and place.

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
    if not isinstance(table, dict) or not all(
        isinstance(value, str) for value in cast("Mapping[str, Any]", table).values()
    ):
        raise UsageError(f"{where}: {', '.join(_FIELDS)} are strings")
    said = {"client": "", "place": "system", **cast("dict[str, str]", table)}
    if strange := sorted(said.keys() - set(_FIELDS)):
        raise UsageError(f"{where}: there is no {strange[0]!r}; write {', '.join(_FIELDS)}")
    if missing := [name for name in _FIELDS if name not in said]:
        raise UsageError(f"{where}: {missing[0]!r} is missing")
    for name, choices in (("action", _ACTIONS), ("place", _PLACES)):
        if said[name] not in choices:
            raise UsageError(f"{where}: {name} must be {choices[0]!r} or {choices[1]!r}, not {said[name]!r}")
    try:
        pattern = re.compile(said["pattern"], re.MULTILINE)
    except re.error as error:
        raise UsageError(f"{where}: pattern: {error}") from None
    if pattern.search(""):
        raise UsageError(f"{where}: pattern fits where there is nothing; make it more exact")
    return PrefixRule(
        said["name"],
        said["client"],
        pattern,
        "drop" if said["action"] == "drop" else "move",
        "reminder" if said["place"] == "reminder" else "system",
    )
