"""Messages as agents begin their conversations with."""

from __future__ import annotations

from typing import Any


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def reminder(text: str) -> str:
    return f"<system-reminder>\n{text}\n</system-reminder>"
