"""When the parts of an answer came, for dialects that tell."""

from __future__ import annotations

from time import perf_counter

from outpace.server.generation import Generation
from outpace.types import TokenDelta


class Timings:
    """Watches one choice's deltas, from the moment that it is made."""

    def __init__(self) -> None:
        self._start = perf_counter()
        self._first = self._last = 0.0
        self._num_first = self._num_tokens = 0

    def observe(self, delta: TokenDelta) -> None:
        """A delta has come."""
        self._last = perf_counter()
        self._num_tokens = delta.num_output_tokens
        if not self._first:
            self._first, self._num_first = self._last, delta.num_output_tokens

    @property
    def prompt_seconds(self) -> float:
        """To the first tokens."""
        return self._first - self._start if self._first else 0.0

    @property
    def decode_seconds(self) -> float:
        """From the first tokens to the last."""
        return self._last - self._first

    @property
    def total_seconds(self) -> float:
        """From the start to the last tokens."""
        return self._last - self._start if self._first else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of those after the first; 0 where there are none."""
        new = self._num_tokens - self._num_first
        return new / self.decode_seconds if new > 0 and self.decode_seconds > 0 else 0.0


async def timed_text(generation: Generation, timings: Timings) -> tuple[str, TokenDelta]:
    """The whole text of a generation of one choice, and its last delta.

    Raises `APIError` where it fails or the client leaves.
    """
    texts: list[str] = []
    last: TokenDelta | None = None
    async for _, last in generation.deltas():
        timings.observe(last)
        texts.append(last.text)
    assert last is not None, "a generation ends with a delta"
    return "".join(texts), last
