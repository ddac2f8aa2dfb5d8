"""Choices in the making: what both endpoints collect for an answer in one piece."""

from __future__ import annotations

from dataclasses import dataclass, field

from outpace.server.generation import Generation
from outpace.types import FinishReason, TokenLogprob


@dataclass(slots=True)
class Choice:
    """One choice of an answer."""

    texts: list[str] = field(default_factory=list[str])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.texts)


async def collect(generation: Generation) -> list[Choice]:
    """Wait for all choices. Raises `APIError` where one fails or the client leaves."""
    choices = [Choice() for _ in range(generation.num_choices)]
    async for index, delta in generation.deltas():
        choice = choices[index]
        choice.texts.append(delta.text)
        choice.logprobs += delta.logprobs
        choice.finish_reason = delta.finish_reason or choice.finish_reason
    return choices
