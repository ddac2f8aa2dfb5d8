"""A drafter that knows the answers: it drafts them right, wrong, half right or not as tokens at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from outpace.draft.proposer import Proposal
from outpace.types import Draft, DraftRequest, Int32Array

DraftMode = Literal["right", "wrong", "half", "mixed", "broken", "tree", "broken tree"]


class EachAlone:
    """A drafter that looks at each request alone, in `guess`; it notes whose end it hears of."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def guess(self, key: str, token_ids: Int32Array, max_tokens: int) -> Draft | None:
        raise NotImplementedError

    def propose(
        self, requests: Sequence[DraftRequest], rooms: Sequence[int], num_rows: int, num_tree_tokens: int
    ) -> list[Draft | None]:
        return [
            self.guess(request.key, request.token_ids, room)
            for request, room in zip(requests, rooms, strict=True)
        ]

    def observe(self, requests: Sequence[DraftRequest], num_rows: int, seconds: float) -> None:
        pass

    def finish(self, request: DraftRequest) -> None:
        self.forgotten.append(request.key)

    def close(self) -> None:
        pass


class OracleProposer:
    """What an `EachAlone` drafter guesses, as a proposer for the controller; classes go round."""

    name = "oracle"
    priors = (0.9, 0.6, 0.3)

    def __init__(self, drafter: EachAlone, cost: float = 0.0) -> None:
        self.drafter = drafter
        self.cost = cost

    def seconds(self, num_requests: int) -> float:
        return self.cost * num_requests

    def setup_seconds(self, request: DraftRequest) -> float:
        return self.cost

    def propose(
        self, requests: Sequence[DraftRequest], max_tokens: Sequence[int]
    ) -> list[tuple[int, Proposal]]:
        drafts = self.drafter.propose(requests, max_tokens, 0, 0)
        return [
            (i, Proposal(draft.token_ids, [k % 3 for k in range(len(draft.token_ids))], draft.parents))
            for i, draft in enumerate(drafts)
            if draft is not None
        ]

    def finish(self, request: DraftRequest) -> None:
        self.drafter.finish(request)

    def close(self) -> None:
        pass


class OracleDrafter(EachAlone):
    """`answers` is each choice's whole sequence, prompt and output, by the drafter's request id."""

    def __init__(self, answers: Mapping[str, Sequence[int]], mode: DraftMode, vocab_size: int) -> None:
        super().__init__()
        self.answers = answers
        self.mode = mode
        self.vocab_size = vocab_size

    def guess(self, key: str, token_ids: Int32Array, max_tokens: int) -> Draft | None:
        """The next tokens of the answer, spoilt as the mode says."""
        position = len(token_ids)
        right = list(self.answers.get(key, ())[position : position + max_tokens])
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
            case "tree":
                return self._tree(right, position)
            case "broken tree":
                return self._broken_tree(right, position)

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

    def _tree(self, right: list[int], position: int) -> Draft:
        """A random tree; the right path ends somewhere, and lies anywhere among wrong ones and doubles."""
        random = np.random.default_rng(position)
        wrong = random.choice([0.0, 0.2, 0.6, 0.9])  # chains to stars
        token_ids: list[int] = []
        parents: list[int] = []
        last, depth = -1, 0  # the right path's end
        while len(token_ids) < len(right):
            if random.random() >= wrong:
                token_ids.append(right[depth])
                parents.append(last)
                last, depth = len(token_ids) - 1, depth + 1
                continue
            parent = int(random.choice([last, random.integers(-1, len(token_ids)), len(token_ids) - 1]))
            token_ids.append(int(random.choice([right[depth], *right, random.integers(self.vocab_size)])))
            parents.append(parent)
        return Draft(token_ids, parents)

    def _broken_tree(self, right: list[int], position: int) -> Draft:
        """A tree with ids that are no tokens, parents that are none, and lists that do not fit."""
        random = np.random.default_rng(position)
        tree = self._tree(right * 2, position)
        assert tree.parents is not None
        token_ids, parents = list(tree.token_ids), list(tree.parents)
        for _ in range(position % 3):
            token_ids[random.integers(len(token_ids))] = int(random.choice([-1, self.vocab_size, 1 << 40]))
            parents[random.integers(len(parents))] = int(random.choice([-2, len(parents), 1 << 40]))
        return Draft(token_ids, parents[: len(parents) - position % 2])
