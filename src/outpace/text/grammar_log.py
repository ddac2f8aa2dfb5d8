"""The grammars that a model's clients use, on disk, so that the next process compiles them beforehand.

They are kept as sources: llguidance has no form of a compiled grammar that could be written. A line of JSON
is a grammar, the newest last; what is cut off or damaged is passed over.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from outpace.types import Grammar

__all__ = ["MAX_BYTES", "MAX_GRAMMARS", "GrammarLog"]

_log = logging.getLogger(__name__)

MAX_GRAMMARS = 64
MAX_BYTES = 4 << 20
"""Of the file; where it would be larger it is written anew with the newest half of that."""


class GrammarLog:
    """The log at `path`. Several processes may append to it. Nothing here raises for what the disk does."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Grammar]:
        """The newest grammars, each once, `MAX_GRAMMARS` at most, in the order in which they came."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            _log.info("%s: earlier grammars are not read: %s", self._path, error)
            return []
        found: dict[Grammar, None] = {}
        for line in reversed(lines):
            if (grammar := _decoded(line)) is not None:
                found.setdefault(grammar)
            if len(found) == MAX_GRAMMARS:
                break
        return list(found)[::-1]

    def append(self, grammar: Grammar) -> None:
        """Write a grammar to the end, for its owner alone to read."""
        try:
            line = _encoded(grammar)
            if self._size() + len(line) > MAX_BYTES:
                self._write_anew([*self.read(), grammar])
                return
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, line)  # a line that is cut off here joins the next one: both are passed over
            finally:
                os.close(file)
        except OSError as error:
            _log.info("%s: a grammar is not kept on disk: %s", self._path, error)

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def _write_anew(self, grammars: Sequence[Grammar]) -> None:
        kept: list[bytes] = []
        room = MAX_BYTES // 2
        for line in map(_encoded, reversed(grammars)):
            room -= len(line)
            if room < 0:
                break
            kept.append(line)
        partial = self._path.with_suffix(f".{os.getpid()}.partial")
        try:
            file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(file, "wb") as opened:
                opened.writelines(reversed(kept))
            partial.replace(self._path)
        finally:
            with suppress(OSError):
                partial.unlink()


def _encoded(grammar: Grammar) -> bytes:
    # Whatever a client sent: a lone surrogate has no UTF-8, its escape in JSON does.
    return json.dumps([grammar.kind, grammar.source]).encode() + b"\n"


def _decoded(line: bytes) -> Grammar | None:
    try:
        read = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match read:
        case [("json_schema" | "regex" | "lark") as kind, str(source)]:
            return Grammar(kind, source)
        case _:
            return None
