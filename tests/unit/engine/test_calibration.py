"""What steps cost here: measured once, kept, and measured anew where the file is of no use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine_harness import null_backend
from outpace.backends.native_backend import NativeBackend
from outpace.config import resolve_engine_config
from outpace.engine.calibration import step_costs
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
        '{"seconds": {"1": 1}, "per_seen_token": 0}',
        '{"seconds": {"1": 1, "8": -2}, "per_seen_token": 0}',
        '{"seconds": {"1": 1, "8": NaN}, "per_seen_token": 0}',
        '{"seconds": {"1": 1, "8": 2}}',
    ],
)
def test_a_damaged_file_is_replaced(backend: NativeBackend, tmp_path: Path, content: str) -> None:
    step_costs(backend, tmp_path, "a machine", measure=True)
    (kept,) = tmp_path.iterdir()
    kept.write_text(content)
    costs = step_costs(backend, tmp_path, "a machine", measure=True)
    assert costs.seconds(1) < 1
    assert len(json.loads(kept.read_text())["seconds"]) > 5


def test_a_folder_that_cannot_be_made_is_no_error(backend: NativeBackend, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    costs = step_costs(backend, tmp_path / "file" / "folder", "a machine", measure=True)
    assert costs.seconds(1) > 0


def test_without_weights_rows_are_free(tmp_path: Path) -> None:
    costs = step_costs(null_backend(), tmp_path, "a machine", measure=True)
    assert costs.seconds(64) == pytest.approx(costs.seconds(1), rel=1e-3)
    assert list(tmp_path.iterdir()) == []
