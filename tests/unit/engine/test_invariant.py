"""Any schedule gives the same tokens as one request alone, without drafts."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from engine_harness import byte_tokenizer, null_backend
from invariant import Scenario, check_invariant, scenarios


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scenario=scenarios(vocab_size=256))
def test_no_schedule_changes_an_answer(scenario: Scenario) -> None:
    check_invariant(null_backend, byte_tokenizer(), scenario)
