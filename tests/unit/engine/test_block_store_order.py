"""Which segments leave the disk: those that nobody used, then those that were, and pinned ones last."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from test_block_store import BLOCK, HEAD, digest_of, open_store, read, segments, write

from engine_harness import drain, make_engine, null_backend, prompt_of
from outpace.engine.block_store import BlockStore
from outpace.types import DraftHints, SamplingParams

BUDGET = 6 * (HEAD + BLOCK)  # segments of one block


def write_at(store: BlockStore, folder: Path, number: int, seconds: float) -> None:
    """Write a block as if it were `seconds` from now."""
    before = set(segments(folder))
    write(store, number)
    (path,) = set(segments(folder)) - before
    os.utime(path, (time.time() + seconds, time.time() + seconds))


def there(store: BlockStore, *numbers: int) -> list[int]:
    return [number for number in numbers if digest_of(number) in store]


@pytest.fixture
def store(tmp_path: Path) -> BlockStore:
    """Full, with blocks 0 to 4 that were written within the last 500 seconds, the lowest first."""
    filled = open_store(tmp_path, budget=BUDGET)
    for number in range(5):
        write_at(filled, tmp_path, number, 100.0 * (number - 5))
    filled.close()
    return open_store(tmp_path, budget=BUDGET)


def test_what_was_used_outlives_what_was_only_written(store: BlockStore, tmp_path: Path) -> None:
    assert read(store, 0) == 1
    for number in range(5, 13):
        write_at(store, tmp_path, number, 50.0 * (number - 4))
        assert there(store, 0) == [0]
    assert there(store, 1, 2, 3, 4, 5, 6) == []


def test_but_not_forever(store: BlockStore, tmp_path: Path) -> None:
    assert read(store, 0) == 1
    for number in range(5, 12):
        write_at(store, tmp_path, number, 600.0 + number)
    assert there(store, 0) == []


def test_pinned_ones_go_last(store: BlockStore, tmp_path: Path) -> None:
    store.touch([digest_of(0)], 300.0)
    for number in (1, 2, 3):
        assert read(store, number) == 1
    for number in range(5, 10):
        write_at(store, tmp_path, number, 700.0 + number)
    assert there(store, 0, 1, 2, 3) == [0]
    store.close()
    again = open_store(tmp_path, budget=BUDGET)
    assert read(again, 0) == 1, "a use does not end the pin, nor does a restart"
    write_at(again, tmp_path, 20, 720.0)
    assert there(again, 0) == [0]
    for number in range(21, 28):
        write_at(again, tmp_path, number, 900.0)
    assert there(again, 0) == []


def test_what_is_appended_later_ends_no_pin(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write(store, 1)
    store.touch([digest_of(1)], 300.0)
    write(store, 2)
    (path,) = segments(tmp_path)
    assert path.stat().st_mtime > time.time() + 250
    store.close()
    assert path.stat().st_mtime > time.time() + 250


@pytest.mark.parametrize("pin_seconds", [0.0, 300.0])
def test_a_request_pins_on_disk_too(tmp_path: Path, pin_seconds: float) -> None:
    backend = null_backend(64)
    memory = backend.kv_blocks
    assert memory is not None
    engine = make_engine(backend, store=BlockStore(tmp_path / "model", b"k" * 32, memory.shape[1], 1 << 24))
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=4)
    engine.submit(prompt_of(900), params, "r", DraftHints(pin_seconds=pin_seconds))
    drain(engine)
    engine.close()
    (path,) = segments(tmp_path)
    assert (path.stat().st_mtime > time.time() + 250) is (pin_seconds > 0)
