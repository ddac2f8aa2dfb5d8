"""Measures what steps cost on this machine, once for each model, and keeps it in the cache folder."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from contextlib import suppress
from pathlib import Path
from time import perf_counter

from outpace.draft.step_costs import StepCosts
from outpace.engine.step_driver import CONTEXT, StepDriver
from outpace.types import Backend

__all__ = ["step_costs"]

_log = logging.getLogger(__name__)

_VERSION = 1
_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15, 16, 20, 24, 32, 48)
_RUNS = 3  # of each, in turn; the quickest counts: what disturbs a step only makes it longer
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
    costs = _load(path)
    if costs is not None:
        return costs
    driver = StepDriver(backend, max(_ROWS), num_output_tokens)
    if not measure or not driver.fits(1, CONTEXT + max(_ROWS)):
        return StepCosts.typical(backend.weight_bytes)
    costs = _measure(driver)
    _save(path, costs)
    return costs


def _measure(driver: StepDriver) -> StepCosts:
    driver.fill(1, CONTEXT)
    started = perf_counter()
    while perf_counter() - started < _WARM_UP:  # buffers grow, memory and clock come up to speed
        driver.step(max(_ROWS), CONTEXT)
    quickest = dict.fromkeys(_ROWS, math.inf)
    for _ in range(_RUNS):
        for rows in _ROWS:
            quickest[rows] = min(quickest[rows], driver.step(rows, CONTEXT))
    per_seen_token = 0.0
    if driver.fits(1, _LONG_CONTEXT + _LONG_ROWS):
        driver.fill(1, _LONG_CONTEXT)
        longest = min(driver.step(_LONG_ROWS, _LONG_CONTEXT) for _ in range(_RUNS))
        seen = _LONG_ROWS * (_LONG_CONTEXT - CONTEXT)
        per_seen_token = max(0.0, longest - quickest[_LONG_ROWS]) / seen
    bare = {rows: seconds - per_seen_token * rows * CONTEXT for rows, seconds in quickest.items()}
    return StepCosts(bare, per_seen_token)


def _key(backend: Backend, machine: str, num_output_tokens: int) -> str:
    build = {name: value for name, value in backend.description.items() if name != "packed_cache"}
    weights = [backend.weight_bytes, num_output_tokens]
    what = [_VERSION, machine, repr(backend.spec), *weights, sorted(build.items())]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _load(path: Path) -> StepCosts | None:
    """The costs of a file; None where there is none, or none that makes sense."""
    try:
        kept = json.loads(path.read_text())
        seconds = {int(rows): float(value) for rows, value in kept["seconds"].items()}
        per_seen_token = float(kept["per_seen_token"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.info("%s: measured anew: %s", path, error)
        return None
    values = [*seconds.values(), 1.0 + per_seen_token]
    if len(seconds) < 2 or not all(0.0 < value < 1e4 for value in values):
        return None
    return StepCosts(seconds, per_seen_token)


def _save(path: Path, costs: StepCosts) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"seconds": costs.points, "per_seen_token": costs.per_seen_token}))
        partial.replace(path)
    except OSError as error:
        _log.info("%s: not kept: %s", path, error)
        with suppress(OSError):
            partial.unlink()
