"""Finds stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from outpace.errors import InvalidParameterError


class StopMatcher:
    """Lets text through up to the first stop string, and holds back what may be the start of one.

    The first is the one that is complete first, whatever the pieces; of several that end at the same
    character, the longest. So the result does not depend on how the text was split, and what is held back
    is exactly the longest end of the text that a stop string begins with (Aho and Corasick, 1975: one
    pass, linear in the text whatever the stops).

    Attribute: `found`, the stop string that came, or None.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises `InvalidParameterError` for an empty stop string."""
        if any(not stop for stop in stops):
            raise InvalidParameterError("a stop string is empty; leave it out", "stop")
        self._next: list[dict[str, int]] = [{}]  # [state] the state after one more character of a stop
        self._depth = [0]  # [state] characters that the state has matched
        self._match = [0]  # [state] length of the longest stop that ends here, 0 for none
        for stop in stops:
            self._add(stop)
        self._fail = self._link()  # [state] the longest proper end of its text that is a state too
        self._state = 0
        self._held = ""
        self.found: str | None = None

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self._next[state].get(character)
            if following is None:
                following = self._next[state][character] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._match.append(0)
            state = following
        self._match[state] = len(stop)

    def _link(self) -> list[int]:
        fail = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, following in self._next[state].items():
                other = fail[state]
                while other and character not in self._next[other]:
                    other = fail[other]
                fail[following] = self._next[other].get(character, 0)
                self._match[following] = self._match[following] or self._match[fail[following]]
                queue.append(following)
        return fail

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is safe to emit, and whether a stop string was found.

        After a stop nothing more is emitted; neither the stop string nor what follows it ever is.
        """
        if self.found is not None:
            return "", True
        if len(self._next) == 1:
            return text, False
        state, following, fail = self._state, self._next, self._fail
        for index, character in enumerate(text):
            while state and character not in following[state]:
                state = fail[state]
            state = following[state].get(character, 0)
            if self._match[state]:
                seen = self._held + text[: index + 1]
                start = len(seen) - self._match[state]
                self._held, self.found = "", seen[start:]
                return seen[:start], True
        self._state = state
        seen = self._held + text
        safe = len(seen) - self._depth[state]
        self._held = seen[safe:]
        return seen[:safe], False

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        held, self._held, self._state = self._held, "", 0
        return held
