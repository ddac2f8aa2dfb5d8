"""A drafter that knows the answers: it drafts them right, wrong, half right or not as tokens at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from outpace.types import Draft, Int32Array

DraftMode = Literal["right", "wrong", "half", "mixed", "broken"]


class OracleDrafter:
    """`answers` is each choice's whole sequence, prompt and output, by the drafter's request id."""

    def __init__(self, answers: Mapping[str, Sequence[int]], mode: DraftMode, vocab_size: int) -> None:
        self.answers = answers
        self.mode = mode
        self.vocab_size = vocab_size
        self.forgotten: list[str] = []

    def propose(self, request_id: str, token_ids: Int32Array, max_tokens: int) -> Draft | None:
        """The next tokens of the answer, spoilt as the mode says."""
        position = len(token_ids)
        right = list(self.answers.get(request_id, ())[position : position + max_tokens])
        right += [position % self.vocab_size] * (max_tokens - len(right))  # beyond the end: anything
        match self.mode:
            case "right":
                return Draft(right)
            case "wrong":
                return Draft([self._other(token) for token in right])
            case "half":
                middle = (max_tokens + 1) // 2
                return Draft(right[:middle] + [self._other(token) for token in right[middle:]])
            case "mixed":
                return self._mixed(right, position)
            case "broken":
                return self._broken(right, position)

    def _other(self, token: int) -> int:
        return (token + 1) % self.vocab_size

    def _mixed(self, right: list[int], position: int) -> Draft | None:
        """Nothing, little, or a draft that goes wrong somewhere."""
        if position % 3 == 0:
            return None
        cut = position * 7 % (len(right) + 1)
        tail = [self._other(token) for token in right[cut:]]
        return Draft(right[:cut] + tail[: position % 4])

    def _broken(self, right: list[int], position: int) -> Draft | None:
        """Too long, not in the vocabulary, a tree, or an exception."""
        match position % 4:
            case 0:
                return Draft(right * 2)
            case 1:
                return Draft([*right[:1], -5, self.vocab_size + 7])
            case 2:
                return Draft(right + right, parents=[*range(-1, len(right) - 1), *range(-1, len(right) - 1)])
            case _:
                raise RuntimeError("this drafter is broken on purpose")

    def forget(self, request_id: str) -> None:
        """Note it."""
        self.forgotten.append(request_id)
