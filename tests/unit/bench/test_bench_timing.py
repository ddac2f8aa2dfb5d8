"""What a stream took, from deltas with known times."""

from __future__ import annotations

import pytest

from outpace.bench import timing
from outpace.bench.bandwidth import utilisation
from outpace.bench.timing import StreamTiming, rate
from outpace.types import FinishReason, TokenDelta


def delta(*token_ids: int, accepted: int = 0, end: FinishReason | None = None) -> TokenDelta:
    return TokenDelta("r", 0, token_ids, "", num_prompt_tokens=7, num_accepted=accepted, finish_reason=end)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the next looks at the clock give, in order."""
    seconds: list[float] = []
    monkeypatch.setattr(timing, "perf_counter", lambda: seconds.pop(0))
    return seconds


def test_prefill_and_decode_are_apart(clock: list[float]) -> None:
    clock += [10.5, 10.6, 10.7, 10.9]
    stream = StreamTiming(started=10.0)
    for each in (delta(1), delta(2), delta(3), delta(4, end=FinishReason.STOP)):
        stream.observe(each)
    assert stream.ttft_ms == pytest.approx(500)
    assert stream.decode_seconds == pytest.approx(0.4)
    assert stream.tok_s == pytest.approx(3 / 0.4)
    assert stream.acceptance_length == 1
    assert (stream.num_prompt_tokens, stream.token_ids) == (7, [1, 2, 3, 4])
    assert stream.finish_reason is FinishReason.STOP


def test_accepted_drafts_are_not_steps(clock: list[float]) -> None:
    clock += [1.0, 2.0, 3.0]
    stream = StreamTiming(started=0.0)
    for each in (delta(1), delta(2, 3, 4, accepted=2), delta(5, 6, accepted=3)):
        stream.observe(each)
    assert stream.num_decode_tokens == 5
    assert stream.num_decode_steps == 2
    assert stream.acceptance_length == 2.5
    assert stream.tok_s == 2.5


def test_drafts_of_the_first_delta_belong_to_prefill(clock: list[float]) -> None:
    clock += [1.0, 2.0]
    stream = StreamTiming(started=0.0)
    stream.observe(delta(1, 2, accepted=1))
    stream.observe(delta(3, accepted=1))
    assert (stream.num_decode_tokens, stream.num_decode_steps) == (1, 1)


def test_an_end_without_tokens_is_no_decode(clock: list[float]) -> None:
    stream = StreamTiming(started=0.0)
    stream.observe(delta(end=FinishReason.ABORT))
    assert (stream.ttft_ms, stream.tok_s, stream.acceptance_length) == (None, None, None)
    clock.append(1.0)
    stream.observe(delta(1))
    assert stream.ttft_ms == pytest.approx(1000)
    assert stream.tok_s is None


def test_rates_have_no_zero_division() -> None:
    assert rate(0, 1) is None
    assert rate(1, 0) is None
    assert rate(6, 3) == 2


def test_utilisation() -> None:
    assert utilisation(10**9, 0.1, 20.0) == pytest.approx(0.5)
    assert utilisation(10**9, 0.1, None) is None
    assert utilisation(0, 0.1, 20.0) is None
    assert utilisation(10**9, 0.0, 20.0) is None
