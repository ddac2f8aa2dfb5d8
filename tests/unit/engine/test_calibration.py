"""What steps cost here: measured once, kept, and measured anew where the file is of no use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine_harness import null_backend
from outpace.backends.native_backend import NativeBackend
from outpace.config import resolve_engine_config
from outpace.engine.calibration import Measurement, step_costs
from outpace.models.checkpoint import open_checkpoint
from tiny_checkpoint import TinyFactory


@pytest.fixture(scope="module")
def backend(tiny_checkpoint: TinyFactory):
    checkpoint = open_checkpoint(tiny_checkpoint("llama").path)
    made = NativeBackend(checkpoint, resolve_engine_config(checkpoint.spec, {"num_threads": 1}))
    yield made
    made.close()


def test_costs_are_measured_once(backend: NativeBackend, tmp_path: Path) -> None:
    costs = step_costs(backend, tmp_path / "new", "a machine", measure=True)
    assert 0 < costs.seconds(1) < 1
    assert costs.seconds(32) > costs.seconds(1)
    (kept,) = (tmp_path / "new").iterdir()
    written = kept.read_text()
    again = step_costs(backend, tmp_path / "new", "a machine", measure=False)
    assert again.points == pytest.approx(costs.points)
    assert kept.read_text() == written
    other = step_costs(backend, tmp_path / "new", "another machine", measure=False)
    assert other.points != pytest.approx(costs.points), "a guess: nothing is known of that machine"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"seconds": {"1": "x"}, "per_seen_token": 0}',
        '{"seconds": {"1": 1}, "per_seen_token": 0, "num_disturbed": 0}',
        '{"seconds": {"1": 1, "8": -2}, "per_seen_token": 0, "num_disturbed": 0}',
        '{"seconds": {"1": 1, "8": NaN}, "per_seen_token": 0, "num_disturbed": 0}',
        '{"seconds": {"1": 1, "8": 2}}',
        '{"seconds": {"1": 1, "8": 2}, "per_seen_token": 0}',
    ],
)
def test_a_damaged_file_is_replaced(backend: NativeBackend, tmp_path: Path, content: str) -> None:
    step_costs(backend, tmp_path, "a machine", measure=True)
    (kept,) = tmp_path.iterdir()
    kept.write_text(content)
    costs = step_costs(backend, tmp_path, "a machine", measure=True)
    assert costs.seconds(1) < 1
    assert len(json.loads(kept.read_text())["seconds"]) > 5


def rounds_of(*factors: float) -> list[dict[int, float]]:
    """A measurement whose rounds took so many times as long as on a quiet machine."""
    return [{rows: factor * (3e-3 + 5e-4 * rows) for rows in (1, 2, 4, 8, 16, 32, 48)} for factor in factors]


def test_other_work_is_noticed() -> None:
    longest = [8e-3, 8.1e-3, 20e-3]
    assert Measurement(rounds_of(1.0, 1.05, 1.8), longest).is_quiet()
    assert Measurement(rounds_of(1.0, 1.05, 1.8), ()).is_quiet()
    assert not Measurement(rounds_of(1.0, 1.5, 1.8), longest).is_quiet()
    assert not Measurement(rounds_of(1.0, 1.0, 1.0), [8e-3, 12e-3, 20e-3]).is_quiet()
    assert not Measurement(rounds_of(1.0, 1.0, 1.0), [0.3, 0.3, 0.3]).is_quiet(), "no attention costs so much"
    one_slow_step = rounds_of(1.0, 1.0, 1.0)
    one_slow_step[1][4] = one_slow_step[2][4] = 1.0
    assert Measurement(one_slow_step, longest).is_quiet()


def test_a_disturbed_measurement_makes_no_row_free() -> None:
    """Of a long context alone, which seems to cost more than all the rest."""
    costs = Measurement(rounds_of(1.0, 1.0, 1.0), [0.3]).costs()
    assert costs.seconds(1) < costs.seconds(4) < costs.seconds(16)
    assert costs.seconds(16) > 2e-3
    plain = Measurement(rounds_of(1.0, 1.0, 1.0), [8e-3]).costs()
    assert plain.per_seen_token == pytest.approx(1e-3 / (8 * (2048 - 256)))


def test_what_was_measured_beside_other_work_is_measured_again(
    backend: NativeBackend, tmp_path: Path
) -> None:
    step_costs(backend, tmp_path, "a machine", measure=True)
    (kept,) = tmp_path.iterdir()
    strange = {"seconds": {"1": 1.0, "8": 1.1}, "per_seen_token": 0.0}
    for num_disturbed, again in ((0, False), (1, True), (2, True), (3, False)):
        kept.write_text(json.dumps({**strange, "num_disturbed": num_disturbed}))
        seen = step_costs(backend, tmp_path, "a machine", measure=False)
        assert seen.seconds(1) == 1.0, "better than a guess"
        costs = step_costs(backend, tmp_path, "a machine", measure=True)
        assert (costs.seconds(1) < 1.0) is again
        assert json.loads(kept.read_text())["num_disturbed"] in (
            (0, num_disturbed + 1) if again else (num_disturbed,)
        )


def test_a_folder_that_cannot_be_made_is_no_error(backend: NativeBackend, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    costs = step_costs(backend, tmp_path / "file" / "folder", "a machine", measure=True)
    assert costs.seconds(1) > 0


def test_without_weights_rows_are_free(tmp_path: Path) -> None:
    costs = step_costs(null_backend(), tmp_path, "a machine", measure=True)
    assert costs.seconds(64) == pytest.approx(costs.seconds(1), rel=1e-3)
    assert list(tmp_path.iterdir()) == []
