"""What the engine takes of a draft: whole trees, and nothing on trust."""

from __future__ import annotations

import pytest

from engine_harness import make_engine, prompt_of, run
from oracle_drafter import EachAlone
from outpace.engine.drafting import propose
from outpace.engine.scheduler import StepPlan
from outpace.types import Draft, SamplingParams


class Saying(EachAlone):
    """A drafter that always says the same."""

    def __init__(self, draft: object) -> None:
        super().__init__()
        self.draft = draft

    def guess(self, key, token_ids, max_tokens):
        return self.draft


class Asked:
    """As much of a request as the drafting needs."""

    key = "r/0"
    token_ids = ()


def taken(draft: object, room: int = 8, max_tree_tokens: int = 64, requests: int = 1) -> list[Draft]:
    plan = StepPlan([Asked() for _ in range(requests)], [1] * requests, [room] * requests, [True] * requests)
    return propose(Saying(draft), plan, 100, max_tree_tokens)


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        (Draft([1, 2, 3]), Draft([1, 2, 3])),
        (Draft([1, 2, 3], [-1, 0, 1]), Draft([1, 2, 3])),
        (Draft([1, 2, 3], [-1, 0, 0]), Draft([1, 2, 3], [-1, 0, 0])),
        (Draft(range(20)), Draft([*range(8)])),
        (Draft(range(20), [-1] * 20), Draft([*range(8)], [-1] * 8)),
        # No token, no parent: gone with what follows it, and the indices close up.
        (Draft([1, 200, 3, 4], [-1, -1, 1, 0]), Draft([1, 4])),
        (Draft([1, 200, 3, 4], [-1, -1, -1, 2]), Draft([1, 3, 4], [-1, -1, 1])),
        (Draft([1, 2, 3], [-1, 1, 1]), Draft([1])),
        (Draft([1, 2, 3], [-1, 2, -2]), Draft([1])),
        (Draft([1, 2, 3], [-1, -1]), Draft([1, 2], [-1, -1])),
        (Draft([1, 2], [-1, -1, 0, 1]), Draft([1, 2], [-1, -1])),
        # Equal guesses are one.
        (Draft([1, 1, 2, 2, 3], [-1, -1, 0, 1, 1]), Draft([1, 2, 3], [-1, 0, 0])),
        (Draft([], []), Draft([])),
        (None, Draft(())),
        (Draft(["a"]), Draft(())),  # type: ignore[list-item]  # wrong on purpose
        (Draft([1], [None]), Draft([])),  # type: ignore[list-item]
        (Draft([1], [[]]), Draft(())),  # type: ignore[list-item]
        ("no draft", Draft(())),
    ],
    ids=str,
)
def test_what_is_sound_is_taken(draft: object, expected: Draft) -> None:
    (got,) = taken(draft)
    assert list(got.token_ids) == list(expected.token_ids)
    assert got.parents == expected.parents


def test_beyond_the_room_for_trees_the_first_path_is_taken() -> None:
    tree = Draft([1, 2, 3, 4, 5], [-1, -1, 0, 1, 2])
    first, second, third = taken(tree, max_tree_tokens=9, requests=3)
    assert first == tree
    assert second == third == Draft([1, 3, 5])


def test_chains_leave_the_room_for_trees_alone() -> None:
    assert taken(Draft([1, 2, 3]), max_tree_tokens=0) == [Draft([1, 2, 3])]


def test_a_tree_saves_steps_that_a_chain_would_not() -> None:
    """The right token is the second guess: accepted all the same."""
    params = SamplingParams(temperature=0, max_tokens=41, ignore_eos=True)
    prompt = prompt_of(20)
    plain = run(make_engine(), prompt, params)["r", 0].token_ids

    class Second(Saying):
        def guess(self, key, token_ids, max_tokens):
            right = [*prompt, *plain][len(token_ids) : len(token_ids) + 2]
            if len(right) < 2 or max_tokens < 4:
                return None
            wrong = [(token + 1) % 256 for token in right]
            return Draft([wrong[0], right[0], wrong[1], right[1]], [-1, -1, 1, 1])

    engine = make_engine(drafter=Second(None))
    answer = run(engine, prompt, params)["r", 0]
    assert answer.token_ids == plain
    assert answer.last is not None
    assert answer.last.num_accepted >= 24
    assert answer.last.num_drafted == 2 * answer.last.num_accepted
