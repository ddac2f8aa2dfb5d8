"""System messages where chat templates want them: one, and that at the beginning."""

from __future__ import annotations

from typing import Any


def system_reminder(text: str) -> str:
    """A system text in a user's turn: the form that coding agents use in mid-conversation."""
    return f"<system-reminder>\n{text}\n</system-reminder>"


def with_one_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation for a template that refuses it as it is.

    The system messages at its beginning become one, later ones reminders in users' turns. Users' turns in a
    row become one, as these templates often ask for alternation too. Nothing is changed in place; `messages`
    are in the form that chat templates read.
    """
    turns: list[dict[str, Any]] = []
    for message in messages:
        last = turns[-1] if turns else None
        if message["role"] == "system" and any(turn["role"] != "system" for turn in turns):
            message = {"role": "user", "content": system_reminder(message["content"])}  # noqa: PLW2901
        if last is not None and last["role"] == message["role"] and message["role"] in {"system", "user"}:
            separator = "\n\n" if message["role"] == "system" else "\n"
            turns[-1] = {**last, "content": separator.join((last["content"], message["content"]))}
        else:
            turns.append(message)
    return turns
