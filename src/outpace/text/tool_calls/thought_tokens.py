"""How many of an answer's tokens are thoughts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from outpace.text.tool_calls.families import ThoughtMarks

__all__ = ["ThoughtTokens"]


class ThoughtTokens:
    """Counts the tokens of one answer's thoughts, their marks included.

    It goes by the tokens' bytes and not by the text that the reader gets, which comes in pieces of several
    tokens and leaves special ones out. The end mark may be one token or several.
    """

    def __init__(self, marks: ThoughtMarks, token_bytes: Callable[[int], bytes], *, thinking: bool) -> None:
        """`token_bytes` spells a token, special ones too. `thinking`: the prompt has opened the thoughts."""
        self._begin, self._end = marks.begin.encode(), marks.end.encode()
        self._token_bytes = token_bytes
        self._thinking = thinking
        self._over = False  # no more thoughts will come
        self._spelled: bytes = b""  # what may still hold the next mark
        self._num_read = 0
        self._num_thought = 0

    def push(self, token_ids: Iterable[int]) -> int:
        """The answer goes on; returns the tokens of its thoughts so far."""
        if not self._over:
            for token_id in token_ids:
                self._num_read += 1
                self._spelled += self._token_bytes(token_id)
                self._look()
                if self._over:
                    break
        return self._num_thought

    def _look(self) -> None:
        if not self._thinking:
            begun = self._spelled.lstrip()
            if not begun.startswith(self._begin):
                self._over = not self._begin.startswith(begun)
                return
            self._thinking, self._spelled = True, begun.removeprefix(self._begin)
        self._num_thought = self._num_read
        self._over = self._end in self._spelled
        self._spelled = self._spelled[-len(self._end) :]
