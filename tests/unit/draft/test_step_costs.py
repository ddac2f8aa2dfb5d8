"""The curve of step costs: between its points, beyond them, and as it learns."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outpace.draft.step_costs import KNOTS, StepCosts


def test_it_goes_through_what_was_measured_and_straight_between() -> None:
    costs = StepCosts({1: 1.0, 4: 1.3, 8: 2.1, 16: 4.1})
    assert costs.seconds(1) == pytest.approx(1.0)
    assert costs.seconds(4) == pytest.approx(1.3)
    assert costs.seconds(6) == pytest.approx(1.7)
    assert costs.seconds(11) == pytest.approx(2.85)
    assert costs.seconds(32) == pytest.approx(8.1)  # as the last two points go
    assert costs.seconds(128) == pytest.approx(32.1)


@given(
    st.dictionaries(st.integers(1, 64), st.floats(1e-6, 10), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(1, 100), st.floats(1e-7, 100)), max_size=40),
)
def test_costs_are_sane_whatever_is_observed(
    measured: dict[int, float], observed: list[tuple[int, float]]
) -> None:
    costs = StepCosts(measured)
    for rows, seconds in observed:
        costs.observe(rows, 0.0, seconds)
    values = [costs.seconds(rows) for rows in range(1, 130)]
    assert all(0 < value < 1e6 for value in values)
    assert all(a <= b for a, b in pairwise(values[63:])), "beyond the last point"


def test_a_row_more_may_cost_less() -> None:
    costs = StepCosts({1: 1.0, 7: 2.0, 8: 1.5, 16: 3.0})
    assert costs.seconds(8) < costs.seconds(7)


def test_a_wrong_shape_is_corrected_by_what_steps_take() -> None:
    costs = StepCosts.typical(100_000_000)
    truth = {1: 0.003, 8: 0.0031, 16: 0.0032}  # verification is flat here
    for _ in range(400):
        for rows, seconds in truth.items():
            costs.observe(rows, 0.0, seconds)
    assert costs.seconds(16) / costs.seconds(1) == pytest.approx(3.2 / 3.0, rel=0.15)


def test_a_slow_phase_of_the_machine_changes_no_ratio() -> None:
    costs = StepCosts({1: 0.003, 8: 0.006, 16: 0.011})
    for _ in range(200):
        costs.observe(1, 0.0, 0.0045)
        costs.observe(8, 0.0, 0.009)
        costs.observe(16, 0.0, 0.0165)
    assert costs.seconds(8) / costs.seconds(1) == pytest.approx(2.0, rel=0.1)


def test_attention_is_not_taken_for_rows() -> None:
    costs = StepCosts({1: 0.003, 8: 0.006}, per_seen_token=1e-7)
    for _ in range(300):
        costs.observe(8, 8 * 8000, 0.006 + 8 * 8000 * 1e-7)
        costs.observe(1, 8000, 0.003 + 8000 * 1e-7)
    assert costs.seconds(8) / costs.seconds(1) == pytest.approx(2.0, rel=0.05)


def test_its_points_make_the_same_curve() -> None:
    costs = StepCosts({1: 0.003, 8: 0.006, 32: 0.02})
    again = StepCosts(costs.points)
    assert set(costs.points) == set(KNOTS)
    assert [again.seconds(rows) for rows in range(1, 70)] == pytest.approx(
        [costs.seconds(rows) for rows in range(1, 70)]
    )


def test_free_rows_are_free() -> None:
    assert StepCosts.free().seconds(64) == pytest.approx(StepCosts.free().seconds(1), rel=1e-3)
