"""Chooses what is drafted: the proposer, how deep and how wide, per request and per step.

A step that verifies k more rows takes longer and brings, on average, as many more tokens as the guesses'
chances add up to. The controller takes the k that brings the most tokens per second, over all requests of the
step together, from

- the chances: what came of earlier guesses of that certainty (`acceptance.py`), which also judges proposals
  that were not verified;
- the cost: the curve of this machine and model (`step_costs.py`), at the rows that the step has anyway.

Where no k pays, nothing is drafted, and a step is what it is without drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outpace.draft.acceptance import ClassTable, RequestRecord
from outpace.draft.proposer import ComputingProposer, Proposal, Proposer
from outpace.draft.step_costs import StepCosts
from outpace.draft.tree import first_path
from outpace.types import Draft, DraftRequest

__all__ = ["DraftController"]

_STEP_OVERHEAD = 1e-4  # seconds of a step outside the backend: the same for any number of rows
_MOST_SCOPES = 64  # whose classes' shares are kept apart
_MODEL_DEPTH = 12  # tokens at most from a proposer that computes
_SETUP_STEPS = 8  # over how many steps its setup is spread at first
_PROBE_SHARE = 0.01  # of the time: what may be spent on seeing whether such a proposer has become worth it
_PROBE_DEPTH = 2
_IDLE = 32  # steps without a draft, from which on a request is looked at more rarely
_LOOK_EVERY = 4  # tokens
_QUICK_STEP = 5e-3  # seconds
_NOTHING: Sequence[Draft | None] = (None,)
_NEARLY = 0.985  # of the best rate: fewer rows that bring nearly as much are the safer bet
_LEAST_CHANCE = 0.02  # a guess less likely than that is never worth a row


@dataclass(slots=True)
class _Candidate:
    """One proposal for one request in this step."""

    proposer: str
    record: RequestRecord
    proposal: Proposal
    chances: list[float]  # of each token: that it is reached and right


@dataclass(slots=True)
class _State:
    """What is kept of a request."""

    records: list[RequestRecord]  # by proposer
    num_tokens: int = 0  # when it was last asked for
    candidates: list[_Candidate] = field(default_factory=list[_Candidate])  # and what there was
    num_idle: int = 0  # times in a row that nothing was drafted


class DraftController:
    """The usual `outpace.types.Drafter`: asks lookups and models, takes what pays on the curve `costs`."""

    def __init__(
        self, lookups: Sequence[Proposer], costs: StepCosts, models: Sequence[ComputingProposer] = ()
    ) -> None:
        self.costs = costs
        self._num_lookups = len(lookups)
        self._models = list(models)
        self._proposers: list[Proposer] = [*lookups, *models]
        self._tables: dict[str, list[ClassTable]] = {}  # by scope, least recently opened first
        self._states: dict[str, _State] = {}
        self._seen_tokens = 0.0  # per row of the present step
        self._since_probe = 0.0  # seconds of steps

    # --- one step ---------------------------------------------------------------------------------

    def propose(
        self,
        requests: Sequence[DraftRequest],
        rooms: Sequence[int],
        num_rows: int,
        num_tree_tokens: int,
    ) -> Sequence[Draft | None]:
        """See `outpace.types.Drafter`."""
        self._seen_tokens = sum(request.num_tokens for request in requests) / len(requests)
        if len(requests) == 1 and self._rests(requests[0]):
            return _NOTHING
        states = [self._state(request) for request in requests]
        for index, proposer in enumerate(self._proposers[: self._num_lookups]):
            self._note(index, states, proposer.propose(requests, rooms))
        if not self._models and not any(state.candidates for state in states):
            for state in states:
                state.num_idle += 1
            return [None] * len(requests)
        choice = _Choice(self.costs, self._seen_tokens, num_rows, len(requests))
        best = [choice.best_alone(state.candidates) for state in states]
        counts, rate = choice.share_out(best)
        for number in range(len(self._models)):
            if self._ask_model(number, requests, states, rooms, best, choice, rate):
                best = [choice.best_alone(state.candidates) for state in states]
                counts, rate = choice.share_out(best)
        allowed = _within(best, num_tree_tokens)
        if any(one is not other for one, other in zip(allowed, best, strict=True)):
            best, (counts, rate) = allowed, choice.share_out(allowed)
        for state, count in zip(states, counts, strict=True):
            state.num_idle = 0 if count else state.num_idle + 1
        return [
            None if candidate is None or count == 0 else _cut(candidate, count)
            for candidate, count in zip(best, counts, strict=True)
        ]

    def observe(self, requests: Sequence[DraftRequest], num_rows: int, seconds: float) -> None:
        """See `outpace.types.Drafter`."""
        for request in requests:
            state = self._states.get(request.key)
            if state is not None and state.candidates:
                _learn(request, state)
        self._since_probe += seconds
        if seconds > 0.0:
            self.costs.observe(num_rows, self._seen_tokens * num_rows, seconds)

    def finish(self, request: DraftRequest) -> None:
        """See `outpace.types.Drafter`."""
        state = self._states.pop(request.key, None)
        if state is not None and state.candidates:
            _learn(request, state)
        for proposer in self._proposers:
            proposer.finish(request)

    def close(self) -> None:
        """See `outpace.types.Drafter`."""
        for proposer in self._proposers:
            proposer.close()
        self._states.clear()

    def _rests(self, request: DraftRequest) -> bool:
        """Whether this step goes without: where nothing has paid for long, and looking up is felt itself.

        That is a request alone whose steps are quick; with more or slower ones a look costs next to nothing.
        """
        state = self._states.get(request.key)
        if state is None or state.num_idle < _IDLE or self.costs.seconds(1) > _QUICK_STEP:
            return False
        return request.num_tokens % _LOOK_EVERY != 0

    # --- asking -----------------------------------------------------------------------------------

    def _state(self, request: DraftRequest) -> _State:
        state = self._states.get(request.key)
        if state is None:
            tables = self._scope_tables(request.hints.scope)
            state = self._states[request.key] = _State([RequestRecord(table) for table in tables])
        state.num_tokens = request.num_tokens
        return state

    def _scope_tables(self, scope: str) -> list[ClassTable]:
        """What proposers' classes are worth in a scope: what others do there must not show in one's own."""
        tables = self._tables.pop(scope, None)
        if tables is None:
            tables = [ClassTable(proposer.priors) for proposer in self._proposers]
            if len(self._tables) >= _MOST_SCOPES:
                del self._tables[next(iter(self._tables))]
        self._tables[scope] = tables
        return tables

    def _note(self, index: int, states: Sequence[_State], proposals: Sequence[tuple[int, Proposal]]) -> None:
        """What a proposer gave for some of the states' requests."""
        name = self._proposers[index].name
        for i, proposal in proposals:
            if proposal.token_ids:
                record = states[i].records[index]
                states[i].candidates.append(_Candidate(name, record, proposal, record.path_shares(proposal)))

    def _ask_model(
        self,
        number: int,
        requests: Sequence[DraftRequest],
        states: Sequence[_State],
        rooms: Sequence[int],
        best: Sequence[_Candidate | None],
        choice: _Choice,
        rate: float,
    ) -> bool:
        """Ask a proposer that computes, for those requests and that many tokens that pay."""
        model, index = self._models[number], self._num_lookups + number
        shares = [state.records[index].share for state in states]
        setups = [_setup(model, request) for request in requests]
        order = choice.order_that_pays(best, shares, model, setups, rate)
        if order is None:
            return self._probe(number, requests[0], states[0], rooms[0])
        self._ask(number, order, requests, states, rooms)
        return True

    def _probe(self, number: int, request: DraftRequest, state: _State, room: int) -> bool:
        """Ask it although that does not pay, where it was not asked for long; whether it was time."""
        model = self._models[number]
        setup = model.setup_seconds(request)
        if self._since_probe * _PROBE_SHARE < _PROBE_DEPTH * model.seconds(1) + setup:
            return False
        guessed = self._ask(number, _Order([0], [0.0] * _PROBE_DEPTH), [request], [state], [room])
        # A model that takes a request in little by little is asked until it guesses, or gets no further.
        if guessed or model.setup_seconds(request) >= setup:
            self._since_probe = 0.0
        return True

    def _ask(
        self,
        number: int,
        order: _Order,
        requests: Sequence[DraftRequest],
        states: Sequence[_State],
        rooms: Sequence[int],
    ) -> bool:
        """Let a proposer that computes guess; whether it did."""
        proposals = self._models[number].propose(
            [requests[i] for i in order.asked],
            [min(len(order.least_chances), rooms[i]) for i in order.asked],
            order.least_chances,
        )
        self._note(self._num_lookups + number, [states[i] for i in order.asked], proposals)
        return bool(proposals)


@dataclass(frozen=True, slots=True)
class _Order:
    """What a proposer that computes is asked for."""

    asked: list[int]  # the requests
    least_chances: list[float]  # that all so far are right, for another one; as many as tokens at most


def _setup(model: ComputingProposer, request: DraftRequest) -> float:
    """What a step is charged for a model's setup: it may take as long as it may have saved so far."""
    seconds = model.setup_seconds(request)
    return seconds / (_SETUP_STEPS + request.num_tokens - request.num_prompt_tokens) if seconds else 0.0


class _Choice:
    """The arithmetic of one step: what rows cost, and what brings the most tokens per second.

    Rows of others, prompts' above all, must be computed some time, whatever is drafted: what they take counts
    for nothing. A token that a draft brings beside them saves what it would cost in a step without them.
    """

    def __init__(self, costs: StepCosts, seen_tokens: float, num_rows: int, num_requests: int) -> None:
        self._costs = costs
        self._per_row = costs.per_seen_token * seen_tokens
        self._num_rows = num_rows
        self._num_requests = num_requests
        self._others = self._rows_seconds(num_rows) - self._rows_seconds(num_requests)
        self._base = self._seconds(0)

    def _rows_seconds(self, num_rows: int) -> float:
        return self._costs.seconds(num_rows) + self._per_row * num_rows

    def _seconds(self, num_drafts: int) -> float:
        seconds = self._rows_seconds(self._num_rows + num_drafts) - self._others
        return max(seconds, 0.0) + _STEP_OVERHEAD  # by a curve that dips, more rows may take less

    def best_alone(self, candidates: Sequence[_Candidate]) -> _Candidate | None:
        """The candidate that would bring the most tokens per second if the other requests drafted nothing."""
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        rates = [self._take([(each, 0)])[1] for each in candidates]
        return candidates[rates.index(max(rates))]

    def share_out(self, best: Sequence[_Candidate | None]) -> tuple[list[int], float]:
        """For each request, how many tokens of its candidate to draft; and the tokens per second then."""
        counts = [0] * len(best)
        taken, rate = self._take([(each, i) for i, each in enumerate(best) if each is not None])
        for i in taken:
            counts[i] += 1
        return counts, rate

    def _take(self, candidates: Sequence[tuple[_Candidate, int]]) -> tuple[list[int], float]:
        """The likeliest guesses of all, as many as pay: whose they are; and the tokens per second then."""
        if len(candidates) == 1 and candidates[0][0].proposal.parents is None:
            chances = candidates[0][0].chances  # of a chain: in their order already
            owners = [candidates[0][1]] * len(chances)
        else:
            # Stable, so that of equal chances a parent goes before its children.
            pairs = sorted(
                ((chance, i) for each, i in candidates for chance in each.chances),
                key=lambda pair: -pair[0],
            )
            chances, owners = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        tokens = float(self._num_requests)
        rates = [tokens / self._base]
        for count, chance in enumerate(chances, 1):
            if chance < _LEAST_CHANCE:
                break
            tokens += chance
            rates.append(tokens / self._seconds(count))
        enough = max(rates) * _NEARLY
        best = next(count for count, rate in enumerate(rates) if rate >= enough)
        return owners[:best], rates[best]

    def order_that_pays(
        self,
        best: Sequence[_Candidate | None],
        shares: Sequence[float],
        model: ComputingProposer,
        setups: Sequence[float],
        rate: float,
    ) -> _Order | None:
        """For whom to ask a proposer that computes, and for how many tokens; None: for nobody.

        For each request, `shares`: of the model's guesses, how many come true; `setups`: seconds beyond them.
        The depth that pays on average is that of every guess alike: a model sees which ones are better, and
        makes more of them than of others.
        """
        found: tuple[list[int], int, int] | None = None
        for depth in range(1, _MODEL_DEPTH + 1):
            asked: list[int] = []
            tokens, num_drafts = float(self._num_requests), 0
            for i, (candidate, share) in enumerate(zip(best, shares, strict=True)):
                expected = share * (1.0 - share**depth) / (1.0 - share) if share < 1.0 else depth
                known = sum(candidate.chances) if candidate is not None else 0.0
                if expected > known:
                    asked.append(i)
                    tokens += expected
                    num_drafts += depth
                elif candidate is not None:
                    tokens += known
                    num_drafts += len(candidate.chances)
            if not asked:
                continue
            setup = sum(setups[i] for i in asked)
            now = tokens / (self._seconds(num_drafts) + depth * model.seconds(len(asked)) + setup)
            if now > rate:
                rate, found = now, (asked, depth, num_drafts)
        if found is None:
            return None
        asked, depth, num_drafts = found
        count = len(asked)
        # A token more of each costs that many seconds, and is worth as many at the rate that there is now.
        share = sum(shares[i] for i in asked) / count
        per_second = rate / (count * share)
        row_seconds = [
            self._seconds(num_drafts + deeper * count) - self._seconds(num_drafts + (deeper - 1) * count)
            for deeper in range(1, _MODEL_DEPTH + 1 - depth)
        ]
        # Up to that depth they pay together, whatever each does.
        without = self._seconds(num_drafts - depth * count)
        average = (self._seconds(num_drafts) - without) / depth
        return _Order(
            asked,
            [(seconds + model.seconds(count)) * per_second for seconds in [average] * depth + row_seconds],
        )


def _learn(request: DraftRequest, state: _State) -> None:
    """Judge what there was by the tokens that have come since."""
    came = request.token_ids[state.num_tokens :].tolist()
    if came:
        for candidate in state.candidates:
            candidate.record.learn(candidate.proposal, came)
    state.candidates = []


def _within(best: Sequence[_Candidate | None], num_tree_tokens: int) -> list[_Candidate | None]:
    """The candidates, all trees beyond so many tokens by their first path alone."""
    kept: list[_Candidate | None] = []
    for candidate in best:
        parents = None if candidate is None else candidate.proposal.parents
        if candidate is None or parents is None:
            kept.append(candidate)
        elif len(parents) <= num_tree_tokens:
            num_tree_tokens -= len(parents)
            kept.append(candidate)
        else:
            kept.append(_along(candidate, first_path(parents)))
    return kept


def _along(candidate: _Candidate, path: Sequence[int]) -> _Candidate:
    proposal = candidate.proposal
    chain = Proposal([proposal.token_ids[node] for node in path], [proposal.classes[node] for node in path])
    return _Candidate(candidate.proposer, candidate.record, chain, [candidate.chances[node] for node in path])


def _cut(candidate: _Candidate, count: int) -> Draft:
    """The draft of a proposal's `count` likeliest tokens."""
    proposal = candidate.proposal
    if proposal.parents is None:
        return Draft(proposal.token_ids[:count], None, candidate.proposer)
    chances = candidate.chances
    kept = sorted(sorted(range(len(chances)), key=lambda node: -chances[node])[:count])
    places = {node: place for place, node in enumerate(kept)}
    places[-1] = -1
    parents = [places[proposal.parents[node]] for node in kept]
    return Draft([proposal.token_ids[node] for node in kept], parents, candidate.proposer)
