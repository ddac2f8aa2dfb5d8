"""Where the readers put what they have read."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

from outpace.text.tool_calls.pieces import CallArguments, CallBegin, CallEnd, Piece, merged

T = TypeVar("T")

Reading = Generator[None, str, T]
"""A reader in the making: it is sent one character at a time, "" at the end of the answer, and returns T."""
Tools = Mapping[str, Mapping[str, Any]]
"""The tools that a request gave: name to the schema of the arguments."""

SPACE = frozenset(" \t\r\n")


class Sink:
    """Takes pieces, and keeps the characters that may still turn out to be no call.

    Attributes: `tools`; `known_names`, whether only those may be called; `num_begun` and `num_ended`, calls
    so far, and those that are whole.
    """

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        self.known_names = False
        self.num_begun = 0
        self.num_ended = 0
        self._held: list[str] | None = []  # None within arguments: those cannot be taken back
        self._pieces: list[Piece] = []

    def hold(self, text: str) -> None:
        """These characters belong to what is being read."""
        if self._held is not None:
            self._held.append(text)

    def drop(self) -> str:
        """What is held, which is held no longer."""
        held, self._held = "".join(self._held or ()), []
        return held

    def may_call(self, name: str) -> bool:
        """Whether a call of this name is one."""
        if self.known_names:
            return name in self.tools
        # A name must survive the way to the client.
        return bool(name.strip()) and name.encode("utf-8", "ignore").decode() == name

    def add(self, piece: Piece) -> None:
        """Text or thoughts."""
        self._pieces.append(piece)

    def begin(self, name: str) -> None:
        """It is a call: nothing before this is text."""
        self._held = None
        self.num_begun += 1
        self._pieces.append(CallBegin(name))

    def arguments(self, text: str) -> None:
        """More of the arguments."""
        self._pieces.append(CallArguments(text))

    def end(self, last: str = "") -> None:
        """The call is whole; `last` is a character after it that has been read already."""
        self._held = [last]
        self.num_ended += 1
        self._pieces.append(CallEnd())

    def take(self) -> list[Piece]:
        """The pieces so far, which are then forgotten."""
        pieces, self._pieces = self._pieces, []
        return list(merged(pieces))


def skip_space() -> Reading[str]:
    """The next character that is no space."""
    character = yield
    while character in SPACE:
        character = yield
    return character


def load(text: str) -> Any:
    """JSON text as a value. Raises `ValueError` for what is none, NaN and infinities included."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def escaped(text: str) -> str:
    """Text as it stands inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
