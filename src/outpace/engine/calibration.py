"""Measures what steps cost on this machine, once for each model, and keeps it in the cache folder.

Drafts go by this for as long as the file is there, so what was measured beside other work is kept for the
time being only: the next starts measure again, a few times at the most.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from outpace.draft.step_costs import StepCosts
from outpace.engine.step_driver import CONTEXT, StepDriver
from outpace.types import Backend

__all__ = ["Measurement", "step_costs"]

_log = logging.getLogger(__name__)

_VERSION = 2
_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15, 16, 20, 24, 32, 48)
_RUNS = 3  # of each, in turn; the quickest counts: what disturbs a step only makes it longer
_QUIET = 1.2  # the second quickest of a step over the quickest, the median of all rows: 1.02 to 1.09 alone
_MOST_DISTURBED = 3  # measurements in a row after which it is taken that the machine is never quiet
_WARM_UP = 0.15  # seconds
_LONG_CONTEXT = 2048  # where attention is measured
_LONG_ROWS = 8


def step_costs(
    backend: Backend, folder: Path, machine: str, *, measure: bool, num_output_tokens: int = 0
) -> StepCosts:
    """The costs of an idle backend's steps: from the folder, or measured now, or where not to be a guess.

    Measuring takes about as long as 600 rows of decoding; its file is named by the model's shape, the
    backend's description and `machine`. A backend without weights, or without speed, has steps that cost
    nothing. A folder that cannot be written is no error. `num_output_tokens`: as `StepBatch` has it.
    """
    if backend.description.get("backend") != "native":
        return StepCosts.free()
    path = folder / f"{_key(backend, machine, num_output_tokens)}.json"
    kept = _load(path)
    if kept is not None and not (measure and 0 < kept.num_disturbed < _MOST_DISTURBED):
        return kept.costs
    driver = StepDriver(backend, max(_ROWS), num_output_tokens)
    if not measure or not driver.fits(1, CONTEXT + max(_ROWS)):
        return StepCosts.typical(backend.weight_bytes)
    measured = _measure(driver)
    num_disturbed = 0 if measured.is_quiet() else (kept.num_disturbed if kept else 0) + 1
    if num_disturbed:
        _log.info("what steps cost was measured beside other work, %d times by now", num_disturbed)
    costs = measured.costs()
    _save(path, _Kept(costs, num_disturbed))
    return costs


@dataclass(frozen=True, slots=True)
class _Kept:
    """A measurement; `num_disturbed` of them in a row, this one included, were made beside other work."""

    costs: StepCosts
    num_disturbed: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds of steps: `rounds` by rows after `CONTEXT` tokens, `longest` after `_LONG_CONTEXT`.

    Of each step as many as there are rounds; those of `longest` have `_LONG_ROWS` rows, and there are none
    where so long a context does not fit.
    """

    rounds: Sequence[Mapping[int, float]]
    longest: Sequence[float]

    def is_quiet(self) -> bool:
        """Whether nothing else ran beside it now and then: most steps take as long again.

        A steady neighbour makes all of them longer and changes little of what the curve is for.
        """
        ratios = [_again([each[rows] for each in self.rounds]) for rows in self.rounds[0]]
        if self.longest and (_again(self.longest) > _QUIET or self._per_seen_token() > self._most()):
            return False
        return statistics.median(ratios) < _QUIET

    def costs(self) -> StepCosts:
        """The curve without attention, and what attention costs."""
        per_seen_token = min(self._per_seen_token(), self._most())
        quickest = self._quickest()
        bare = {rows: seconds - per_seen_token * rows * CONTEXT for rows, seconds in quickest.items()}
        return StepCosts(bare, per_seen_token)

    def _quickest(self) -> dict[int, float]:
        return {rows: min(each[rows] for each in self.rounds) for rows in self.rounds[0]}

    def _per_seen_token(self) -> float:
        if not self.longest:
            return 0.0
        more = min(self.longest) - self._quickest()[_LONG_ROWS]
        return max(0.0, more) / (_LONG_ROWS * (_LONG_CONTEXT - CONTEXT))

    def _most(self) -> float:
        """Attention to `CONTEXT` tokens is less than half of a step, in any model."""
        return min(seconds / rows for rows, seconds in self._quickest().items()) / (2 * CONTEXT)


def _again(seconds: Sequence[float]) -> float:
    """How much longer than the quickest the second quickest took."""
    quickest, second, *_ = sorted(seconds)
    return second / quickest


def _measure(driver: StepDriver) -> Measurement:
    driver.fill(1, CONTEXT)
    started = perf_counter()
    while perf_counter() - started < _WARM_UP:  # buffers grow, memory and clock come up to speed
        driver.step(max(_ROWS), CONTEXT)
    rounds = [{rows: driver.step(rows, CONTEXT) for rows in _ROWS} for _ in range(_RUNS)]
    if not driver.fits(1, _LONG_CONTEXT + _LONG_ROWS):
        return Measurement(rounds, ())
    driver.fill(1, _LONG_CONTEXT)
    return Measurement(rounds, [driver.step(_LONG_ROWS, _LONG_CONTEXT) for _ in range(_RUNS)])


def _key(backend: Backend, machine: str, num_output_tokens: int) -> str:
    build = {name: value for name, value in backend.description.items() if name != "packed_cache"}
    weights = [backend.weight_bytes, num_output_tokens]
    what = [_VERSION, machine, repr(backend.spec), *weights, sorted(build.items())]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _load(path: Path) -> _Kept | None:
    """What a file has; None where there is none, or none that makes sense."""
    try:
        kept = json.loads(path.read_text())
        seconds = {int(rows): float(value) for rows, value in kept["seconds"].items()}
        per_seen_token = float(kept["per_seen_token"])
        num_disturbed = int(kept["num_disturbed"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.info("%s: measured anew: %s", path, error)
        return None
    values = [*seconds.values(), 1.0 + per_seen_token]
    if len(seconds) < 2 or not all(0.0 < value < 1e4 for value in values):
        return None
    return _Kept(StepCosts(seconds, per_seen_token), num_disturbed)


def _save(path: Path, kept: _Kept) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        costs = {"seconds": kept.costs.points, "per_seen_token": kept.costs.per_seen_token}
        partial.write_text(json.dumps({**costs, "num_disturbed": kept.num_disturbed}))
        partial.replace(path)
    except OSError as error:
        _log.info("%s: not kept: %s", path, error)
        with suppress(OSError):
            partial.unlink()
