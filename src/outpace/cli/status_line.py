"""A line at the bottom of the terminal that stays while text scrolls above it."""

from __future__ import annotations

import shutil
from time import monotonic
from types import TracebackType
from typing import TextIO

from outpace.config import moves_cursor, wants_colour

INTERVAL = 0.1  # seconds between two redraws

# VT100 control sequences (ECMA-48, DECSTBM)
SAVE_CURSOR, RESTORE_CURSOR = "\x1b7", "\x1b8"
SCROLL_ALL = "\x1b[r"
CLEAR_LINE = "\x1b[2K"
CURSOR_UP = "\x1b[A"
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def dimmed(text: str) -> str:
    """The text as a terminal dims it, where colours are wanted."""
    return f"{DIM}{text}{PLAIN}" if wants_colour() else text


class StatusLine:
    """Keeps the terminal's last line for a status, while active, by shrinking the scroll region.

    Where `terminal` is none, nothing is written.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._active = False
        self._height = 0
        self._drawn_at = 0.0

    def __enter__(self) -> StatusLine:
        """Take the last line."""
        able = self._terminal.isatty() and moves_cursor()
        self._active = able and shutil.get_terminal_size().lines > 2
        if self._active:
            self._terminal.write("\n" + CURSOR_UP)  # if the cursor is on the last line, scroll
            self._set_region()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the last line back."""
        if self._active:
            self._draw("")
            self._write_in_place(SCROLL_ALL)
            self._active = False

    def update(self, status: str) -> None:
        """Show `status`, cut to the terminal's width, at most every tenth of a second."""
        if not self._active or monotonic() - self._drawn_at < INTERVAL:
            return
        self._drawn_at = monotonic()
        columns, lines = shutil.get_terminal_size()
        if lines != self._height:
            self._set_region()
        self._draw(dimmed(status[: columns - 1]))

    def _set_region(self) -> None:
        self._height = shutil.get_terminal_size().lines
        self._write_in_place(f"\x1b[1;{self._height - 1}r")

    def _draw(self, status: str) -> None:
        self._write_in_place(f"\x1b[{self._height};1H{CLEAR_LINE}{status}")

    def _write_in_place(self, sequence: str) -> None:
        self._terminal.write(SAVE_CURSOR + sequence + RESTORE_CURSOR)
        self._terminal.flush()
