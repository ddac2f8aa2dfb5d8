"""The controller drafts what pays, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from asking import Asking

from outpace.draft.controller import DraftController
from outpace.draft.proposer import Proposal
from outpace.draft.step_costs import StepCosts
from outpace.types import Draft, DraftHints, DraftRequest

FLAT = StepCosts({1: 0.010, 16: 0.0101, 64: 0.0102})
LINEAR = StepCosts({1: 0.010, 2: 0.020, 64: 0.640})  # as if computing were all


class Saying:
    """Proposes what a function of the request says."""

    def __init__(
        self,
        say: Callable[[DraftRequest, int], Proposal | None],
        priors: Sequence[float] = (0.9, 0.5, 0.05),
        cost: float = 0.0,
        name: str = "saying",
        setup: float = 0.0,
    ) -> None:
        self.setup = setup
        self.name = name
        self.priors = priors
        self.say = say
        self.cost = cost
        self.asked: list[tuple[int, ...]] = []
        self.finished: list[str] = []
        self.closed = 0

    def seconds(self, num_requests: int) -> float:
        return self.cost

    def setup_seconds(self, request: DraftRequest) -> float:
        return self.setup

    def propose(
        self,
        requests: Sequence[DraftRequest],
        max_tokens: Sequence[int],
        least_chances: Sequence[float] = (),
    ) -> Sequence[tuple[int, Proposal]]:
        self.asked.append(tuple(max_tokens))
        self.least_chances = list(least_chances)
        said = [self.say(request, most) for request, most in zip(requests, max_tokens, strict=True)]
        return [(i, proposal) for i, proposal in enumerate(said) if proposal is not None]

    def finish(self, request: DraftRequest) -> None:
        self.finished.append(request.key)

    def close(self) -> None:
        self.closed += 1


def chain(length: int, index: int = 0) -> Callable[[DraftRequest, int], Proposal]:
    """What follows is one more each time, of class `index`."""

    def say(request: DraftRequest, most: int) -> Proposal:
        last = int(request.token_ids[-1])
        count = min(length, most)
        return Proposal([last + 1 + i for i in range(count)], [index] * count)

    return say


def drafts_of(controller: DraftController, *requests: Asking, room: int = 31) -> list[Draft | None]:
    return list(controller.propose(requests, [room] * len(requests), len(requests), 64))


def lengths(drafts: Sequence[Draft | None]) -> list[int]:
    return [0 if draft is None else len(draft.token_ids) for draft in drafts]


def test_where_rows_are_free_all_is_drafted() -> None:
    (draft,) = drafts_of(DraftController([Saying(chain(20))], FLAT), Asking())
    assert draft is not None
    assert len(draft.token_ids) >= 18
    assert draft.token_ids == list(range(10, 10 + len(draft.token_ids)))
    assert draft.proposer == "saying"
    assert draft.parents is None


def test_depth_follows_the_chances() -> None:
    costs = StepCosts({1: 0.010, 8: 0.012, 16: 0.020, 32: 0.040})
    sure = lengths(drafts_of(DraftController([Saying(chain(31), [0.99])], costs), Asking()))[0]
    likely = lengths(drafts_of(DraftController([Saying(chain(31), [0.8])], costs), Asking()))[0]
    unlikely = lengths(drafts_of(DraftController([Saying(chain(31), [0.1])], costs), Asking()))[0]
    assert sure > likely > unlikely
    assert sure >= 12
    assert 4 <= likely <= 10


def test_what_does_not_pay_is_not_drafted() -> None:
    """Twice the rows, twice the time: no guess can be worth it."""
    assert drafts_of(DraftController([Saying(chain(20))], LINEAR), Asking()) == [None]


def test_a_loser_turns_itself_off_and_on_again() -> None:
    """Wrong guesses end the drafting; it is seen when they become right, although none is verified."""
    costs = StepCosts({1: 0.010, 16: 0.030})
    controller = DraftController([Saying(chain(15))], costs)
    request = Asking()

    def steps(count: int, right: bool) -> list[int]:
        drafted: list[int] = []
        for _ in range(count):
            drafted += lengths(drafts_of(controller, request))
            request.tokens.append(request.tokens[-1] + (1 if right else 7))
            controller.observe([request], 1 + drafted[-1], 0.0)
        return drafted

    assert steps(1, right=False)[0] > 0
    assert sum(steps(200, right=False)[20:]) == 0
    assert sum(steps(300, right=True)[-5:]) > 0


def test_the_better_of_two_proposers_is_taken() -> None:
    bad, good = Saying(chain(10, 2), name="bad"), Saying(chain(10, 0), name="good")
    (draft,) = drafts_of(DraftController([bad, good], FLAT), Asking())
    assert draft is not None
    assert draft.proposer == "good"


def test_rows_go_to_the_likeliest_guesses_of_all_requests() -> None:
    """Two requests share what pays: the sure one gets more of it."""

    def say(request: DraftRequest, most: int) -> Proposal:
        return chain(16, 0 if request.key == "sure" else 1)(request, most)

    costs = StepCosts({1: 0.010, 8: 0.012, 16: 0.020, 32: 0.040})
    sure, unsure = lengths(drafts_of(DraftController([Saying(say)], costs), Asking("sure"), Asking("unsure")))
    assert sure > unsure
    alone = lengths(drafts_of(DraftController([Saying(say)], costs), Asking("sure")))[0]
    assert sure <= alone, "rows of a fuller step are dearer here"


def test_a_full_batch_where_rows_cost_drafts_less() -> None:
    costs = StepCosts({1: 0.010, 8: 0.0105, 16: 0.020, 64: 0.080})
    alone = sum(lengths(drafts_of(DraftController([Saying(chain(6, 1))], costs), Asking())))
    requests = [Asking(f"r/{i}") for i in range(16)]
    together = lengths(drafts_of(DraftController([Saying(chain(6, 1))], costs), *requests))
    assert alone > 0
    assert sum(together) == 0


def test_of_a_tree_the_likely_part_is_taken_whole() -> None:
    def say(request: DraftRequest, most: int) -> Proposal:
        return Proposal([1, 2, 3, 4, 5, 6], [0, 2, 0, 1, 2, 0], [-1, 0, 0, -1, 3, 2])

    costs = StepCosts({1: 0.010, 2: 0.0115, 64: 0.105})
    (draft,) = drafts_of(DraftController([Saying(say)], costs), Asking())
    assert draft is not None
    assert list(draft.token_ids) == [1, 3, 4, 6]
    assert draft.parents == [-1, 0, -1, 1]


def test_what_costs_something_is_asked_for_as_much_as_pays() -> None:
    costs = StepCosts({1: 0.030, 8: 0.032, 16: 0.040})
    cheap = Saying(chain(31), [0.9], cost=0.001, name="model")
    dear = Saying(chain(31), [0.9], cost=0.1, name="model")
    assert lengths(drafts_of(DraftController([], costs, [cheap]), Asking()))[0] >= 1
    assert drafts_of(DraftController([], costs, [dear]), Asking()) == [None]
    assert dear.asked == []


def test_a_guess_is_followed_as_long_as_that_pays() -> None:
    """A row more costs nothing up to the eighth, and a third of a step from there on."""
    costs = StepCosts({1: 0.030, 8: 0.030, 12: 0.070, 16: 0.110})
    model = Saying(chain(31), [0.8], cost=0.004, name="model")
    drafts_of(DraftController([], costs, [model]), Asking())
    ahead, beyond = model.least_chances[:7], model.least_chances[7:]
    assert all(0.1 < chance < 0.6 for chance in ahead)
    assert ahead[1] == pytest.approx(0.004 * 1 / 0.8 / 0.0135, rel=0.4), "its cost over that of a token"
    assert all(chance > 0.9 for chance in beyond)
    dear = Saying(chain(31), [0.8], cost=0.010, name="model")
    drafts_of(DraftController([], costs, [dear]), Asking())
    assert dear.least_chances[1] > 1.5 * ahead[1]


def test_others_look_ups_do_not_raise_the_bar() -> None:
    costs = StepCosts({1: 0.030, 4: 0.0305, 8: 0.046, 16: 0.050, 64: 0.270})

    def say(request: DraftRequest, most: int) -> Proposal | None:
        return chain(6, 0)(request, most) if request.key == "a/0" else None

    model = Saying(chain(31), [0.9], cost=0.001, name="model")
    controller = DraftController([Saying(say, [0.95])], costs, [model])
    controller.propose([Asking("a/0"), Asking("b/0")], [31, 31], 2, 64)
    assert len(model.asked) == len(model.asked[0]) == 1, "the one without a look-up is asked for"
    assert model.least_chances[1] < 1.0


def test_trees_beyond_what_a_step_takes_go_by_their_first_path() -> None:
    def say(request: DraftRequest, most: int) -> Proposal:
        last = int(request.token_ids[-1])
        return Proposal([last + 1, last + 2, 99, 98], [0, 0, 1, 1], [-1, 0, -1, 0])

    controller = DraftController([Saying(say, [0.9, 0.3])], FLAT)
    requests = [Asking("a/0"), Asking("b/0")]
    for num_tree_tokens, expected in (8, [4, 4]), (7, [4, 2]), (3, [2, 2]), (0, [2, 2]):
        drafts = controller.propose(requests, [31, 31], 2, num_tree_tokens)
        assert lengths(drafts) == expected
        for draft in drafts:
            assert draft is not None
            assert (draft.parents is None) == (len(draft.token_ids) == 2)


def test_a_probe_lasts_until_a_slow_reader_guesses() -> None:
    """It reads for three calls before each guess; that it is asked in vain must not end the probe."""
    costs = StepCosts({1: 0.030, 8: 0.060})
    guesses = 0

    def say(request: DraftRequest, most: int) -> Proposal | None:
        nonlocal guesses
        model.setup -= 0.01
        if model.setup > 0.005:
            return None
        guesses += 1
        model.setup = 0.03
        return Proposal([999] * most, [0] * most)

    model = Saying(say, [0.1], cost=0.02, name="model", setup=0.03)
    controller = DraftController([], costs, [model])
    request = Asking(num_prompt_tokens=10)
    for _ in range(3000):
        drafts_of(controller, request)
        request.tokens.append(request.tokens[-1] + 1)
        controller.observe([request], 1, 0.030)
    assert 8 <= guesses <= 16, "one in a hundredth of the time, and not a third of that"


def test_prompts_in_a_step_do_not_make_drafts_look_cheap() -> None:
    """What takes longer by guessing than step by step does so beside a prompt's rows, too."""
    costs = StepCosts({1: 0.030, 4: 0.030, 8: 0.046, 64: 0.270})
    requests = [Asking(f"{i}/0") for i in range(6)]
    for num_rows in (6, 56):
        model = Saying(chain(31), [0.9], cost=0.008, name="model")
        controller = DraftController([], costs, [model])
        assert controller.propose(requests, [31] * 6, num_rows, 64) == [None] * 6
        assert model.asked == []


def test_a_setup_is_paid_when_the_request_has_lasted() -> None:
    costs = StepCosts({1: 0.030, 8: 0.032, 16: 0.040})
    model = Saying(chain(31), [0.9], cost=0.001, name="model", setup=1.0)
    controller = DraftController([], costs, [model])
    assert drafts_of(controller, Asking()) == [None]
    assert model.asked == []
    lasted = Asking("lasted/0", list(range(200)))
    assert lengths(drafts_of(controller, lasted))[0] >= 1


def test_a_sure_look_up_spares_the_model() -> None:
    costs = StepCosts({1: 0.030, 16: 0.032, 32: 0.040})
    model = Saying(chain(31), [0.9], cost=0.01, name="model")
    (draft,) = drafts_of(DraftController([Saying(chain(20), [0.99])], costs, [model]), Asking())
    assert draft is not None
    assert draft.proposer == "saying"
    assert model.asked == []


def test_a_model_that_has_lost_is_tried_again_now_and_then() -> None:
    costs = StepCosts({1: 0.030, 8: 0.032})
    model = Saying(lambda request, most: Proposal([999] * most, [0] * most), [0.9], cost=0.01)
    controller = DraftController([], costs, [model])
    request = Asking()
    early = 0
    for step in range(400):
        early = len(model.asked) if step == 50 else early
        drafts_of(controller, request)
        request.tokens.append(request.tokens[-1] + 1)
        controller.observe([request], 1, 0.030)
    late = model.asked[early:]
    assert 3 <= len(late) <= 8
    assert sum(sum(asked) for asked in late) * 0.01 <= 0.01 * 400 * 0.030, "one percent of the time"


def test_a_new_request_begins_with_what_the_model_was_worth_to_others() -> None:
    costs = StepCosts({1: 0.030, 8: 0.032})
    model = Saying(chain(31), [0.9], cost=0.02)  # pays from two thirds on
    controller = DraftController([], costs, [model])
    first = Asking("first/0")
    assert drafts_of(controller, first) == [None]
    for _ in range(400):
        drafts_of(controller, first)
        first.tokens.append(first.tokens[-1] + 1)
        controller.observe([first], 1, 0.030)
    assert lengths(drafts_of(controller, Asking("next/0")))[0] >= 1
    stranger = Asking("stranger/0", hints=DraftHints("another scope"))
    assert drafts_of(controller, stranger) == [None]


def test_scopes_learn_apart() -> None:
    """What one client's text did to the odds does not show in another's drafts."""
    costs = StepCosts({1: 0.010, 16: 0.030})
    controller = DraftController([Saying(chain(15))], costs)
    loser = Asking("a/0", hints=DraftHints("a"))
    for _ in range(100):
        drafts_of(controller, loser)
        loser.tokens.append(loser.tokens[-1] + 7)
        controller.observe([loser], 1, 0.0)
    before = lengths(drafts_of(DraftController([Saying(chain(15))], costs), Asking("b/0")))
    assert lengths(drafts_of(controller, Asking("b/0", hints=DraftHints("b")))) == before
    assert lengths(drafts_of(controller, Asking("c/0", hints=DraftHints("a")))) == [0]


def test_ends_are_passed_on_and_forgotten() -> None:
    saying = Saying(chain(5))
    controller = DraftController([saying], FLAT)
    request = Asking()
    drafts_of(controller, request)
    request.tokens.append(10)
    controller.finish(request)
    controller.observe([request], 6, 0.01)
    controller.finish(Asking("never asked"))
    controller.close()
    assert saying.finished == ["r/0", "never asked"]
    assert saying.closed == 1


@pytest.mark.parametrize("say", [lambda *_: None, lambda *_: Proposal([], [])], ids=["none", "empty"])
def test_no_idea_is_no_draft(say: Callable[[DraftRequest, int], Proposal | None]) -> None:
    assert drafts_of(DraftController([Saying(say)], FLAT), Asking(), Asking("s/0")) == [None, None]
