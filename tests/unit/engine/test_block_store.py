"""KV blocks on disk: they come back as they were or not at all, whatever happens to the files."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outpace import disk
from outpace.draft.log import model_folder, remove_orphans
from outpace.engine import block_store
from outpace.engine.block_store import BlockStore
from outpace.engine.segment import Segment

KEY = b"k" * 32
BLOCK = 3000  # bytes
HEAD = 8192  # of a segment with few slots
PLENTY = 1 << 24


def digest_of(number: int) -> bytes:
    return blake2b(b"%d" % number, digest_size=16).digest()


def block_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, BLOCK, dtype=np.uint8)


def open_store(
    folder: Path, *, budget: int = PLENTY, key: bytes = KEY, block_bytes: int = BLOCK
) -> BlockStore:
    return BlockStore(folder / "model", key, block_bytes, budget)


def write(store: BlockStore, *numbers: int) -> None:
    store.write([digest_of(n) for n in numbers], np.stack([block_of(n) for n in numbers]))


def read(store: BlockStore, *numbers: int) -> int:
    """How many of the blocks, from the first on, come back; they must be what was written."""
    found = [np.zeros(BLOCK, np.uint8) for _ in numbers]
    count = store.read([digest_of(n) for n in numbers], found)
    for number, block in zip(numbers[:count], found, strict=False):
        np.testing.assert_array_equal(block, block_of(number))
    return count


def fill(folder: Path, *numbers: int, **options: int) -> None:
    store = open_store(folder, **options)
    write(store, *numbers)
    store.close()


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.blocks"))


def test_blocks_come_back_in_this_process_and_the_next(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write(store, 1, 2, 3)
    write(store, 4)
    assert read(store, 1, 2, 3, 4) == 4
    assert read(store, 4, 2) == 2
    assert read(store, 1, 9, 2) == 1
    store.close()
    again = open_store(tmp_path)
    assert again.num_blocks == 4
    assert again.find([digest_of(n) for n in (1, 2, 9, 4)], 0, 4) == 2
    assert read(again, 2, 3, 4, 1) == 4
    write(again, 5)
    again.close()
    assert len(segments(tmp_path)) == 1, "the next process goes on in the same file"
    assert read(open_store(tmp_path), 1, 2, 3, 4, 5) == 5


def test_what_was_not_written_is_not_there(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert digest_of(1) not in store
    assert read(store, 1) == 0


def test_files_are_private(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in segments(tmp_path)] == [0o600]


def test_another_key_or_another_size_never_matches(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    assert open_store(tmp_path, key=b"x" * 32).num_blocks == 0
    assert open_store(tmp_path, block_bytes=BLOCK // 2).num_blocks == 0
    path = segments(tmp_path)[0]
    data = path.read_bytes()
    path.write_bytes(data.replace(KEY, b"x" * 32, 1))
    assert open_store(tmp_path, key=b"x" * 32).num_blocks == 0, "the entries know their key too"


def test_the_files_of_models_that_are_gone_are_removed(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_text("")
    folder = model_folder(tmp_path / "prefixes", model)
    store = BlockStore(folder, KEY, BLOCK, PLENTY)
    write(store, 1)
    store.close()
    assert remove_orphans(tmp_path / "prefixes") == 0
    model.unlink()
    assert remove_orphans(tmp_path / "prefixes") > BLOCK
    assert not folder.exists()


# --- what breaks ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(
            st.one_of(
                st.integers(0, 63), st.integers(4096, 4096 + 6 * 32 - 1), st.integers(HEAD, HEAD + 6 * BLOCK)
            ),
            st.integers(1, 255),
        ),
        min_size=1,
        max_size=4,
    ),
    length=st.one_of(st.none(), st.none(), st.integers(0, HEAD + 6 * BLOCK)),
)
def test_damage_costs_blocks_and_nothing_else(
    tmp_path: Path, changes: list[tuple[int, int]], length: int | None
) -> None:
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    fill(tmp_path, *range(6), budget=32 * 6 * BLOCK)
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    for at, change in changes:
        data[min(at, len(data) - 1)] ^= change
    path.write_bytes(data[:length])
    store = open_store(tmp_path, budget=32 * 6 * BLOCK)
    there = [number for number in range(6) if read(store, number)]
    write(store, *(number for number in (*range(6), 7) if digest_of(number) not in store))
    assert read(store, *range(6), 7) == 7, "what was damaged is written anew"
    store.close()
    assert len(there) >= 6 - len(changes) or length is not None or min(changes)[0] < 64
    assert read(open_store(tmp_path), *range(6), 7) == 7


def test_a_damaged_block_is_dropped_for_good(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 1, 2, 3)
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    at = data.find(block_of(2).tobytes())
    data[at + 100] ^= 1
    path.write_bytes(data)
    store = open_store(tmp_path)
    assert read(store, 1, 2, 3) == 1
    assert "a block is damaged" in caplog.text
    assert (store.num_damaged, digest_of(2) in store, digest_of(3) in store) == (1, False, True)
    store.close()
    again = open_store(tmp_path)
    assert read(again, 1) == read(again, 3) == 1
    assert again.num_blocks == 2


def test_entries_that_lie_about_whose_block_it_is(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    first, second = slice(4096, 4096 + 16), slice(4096 + 32, 4096 + 48)
    data[first], data[second] = data[second], data[first]  # the digests; the checksums stay
    path.write_bytes(data)
    assert open_store(tmp_path).num_blocks == 0


@pytest.mark.parametrize("content", [b"", b"OUTKVBLK", b"\0" * 10_000, b"\xff" * 10_000, b"GGUF" * 3000])
def test_a_foreign_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model").mkdir()
    foreign = tmp_path / "model" / "x.blocks"
    foreign.write_bytes(content)
    fill(tmp_path, 1)
    assert read(open_store(tmp_path), 1) == 1
    assert foreign.read_bytes() == content


def test_a_file_that_vanishes_is_a_miss(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    store = open_store(tmp_path)
    write(store, 3)
    for path in segments(tmp_path):
        path.unlink()
    assert read(store, 1, 2) == 0
    write(store, 4)
    assert read(store, 4) == 1
    assert store.num_blocks == 1
    store.close()
    assert read(open_store(tmp_path), 4) == 1


def test_what_cannot_be_opened_just_now_is_not_forgotten(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write(store, 1, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert read(store, 1, 2) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read(store, 1, 2) == 2


def test_writing_goes_on_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(block_store, "_FIRST_PAUSE", 0.3)
    store = open_store(tmp_path)
    with monkeypatch.context() as short:
        short.setattr(disk, "_FREE_BYTES", 1 << 60)
        for number in range(2):
            write(store, number)
            assert not store.can_write
            write(store, 9)
            assert store.num_errors == number + 1, "it is not tried again at once"
            time.sleep(0.3 * 2**number)
            assert store.can_write
    assert caplog.text.count("are not written") == 1
    write(store, 1)
    assert read(store, 1) == 1
    assert store.can_write
    store.close()
    assert not store.can_write


def test_a_segment_that_could_not_be_written_to_is_used_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_store, "_FIRST_PAUSE", 0.0)
    store = open_store(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write(store, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        for _ in range(3):
            write(store, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert store.num_errors == 3
    write(store, 2)
    assert read(store, 1, 2) == 2
    store.close()
    assert len(segments(tmp_path)) == 1
    assert read(open_store(tmp_path), 1, 2) == 2


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    store = BlockStore(tmp_path / "file" / "model", KEY, BLOCK, PLENTY)
    write(store, 1)
    assert (store.num_blocks, store.can_write, store.num_errors) == (0, False, 1)
    assert caplog.text.count("are not written") == 1
    store.close()
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 1 MB."""
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("NOT TESTED: a full disk needs root, to mount a small one")
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False)
    if done.returncode != 0:
        pytest.skip("NOT TESTED: a full disk needs the right to mount a small one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("checked", [True, False])
def test_a_full_disk_is_one_warning_and_no_more_writes(
    small_disk: Path, checked: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not checked:  # it fills up between the check and the write
        monkeypatch.setattr(disk, "_FREE_BYTES", -(1 << 40))
        monkeypatch.setattr(disk, "_FREE_SHARE", -1)
    store = open_store(small_disk, budget=1 << 23)
    for number in range(0, 600, 20):
        write(store, *range(number, number + 20))
    assert caplog.text.count("are not written") == 1
    assert ("No space left" in caplog.text) is not checked
    assert store.num_errors == 1
    assert (store.num_written == 0) is checked
    whole = store.num_written
    assert read(store, *range(whole)) == whole
    store.close()
    again = open_store(small_disk)
    assert read(again, *range(whole)) == whole
    again.close()


# --- the budget -----------------------------------------------------------------------------------


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("**/*.blocks"))


def test_the_budget_is_kept_and_the_oldest_go_first(tmp_path: Path) -> None:
    one = HEAD + BLOCK
    budget = 5 * one  # segments of one block
    store = open_store(tmp_path, budget=budget)
    for number in range(5):
        write(store, number)
        (newest,) = (path for path in segments(tmp_path) if path.stat().st_mtime > 1e9)
        os.utime(newest, (number + 1, number + 1))
    assert read(store, 0) == 1, "it is used, and no longer the oldest"
    for number in range(5, 8):
        write(store, number)
        assert bytes_on_disk(tmp_path) <= budget
    assert [number for number in range(8) if digest_of(number) in store] == [0, 4, 5, 6, 7]
    assert store.num_evicted == 3
    assert read(store, 0) == read(store, 7) == 1
    store.close()
    lower = open_store(tmp_path, budget=2 * one)
    assert lower.num_blocks == 2
    assert bytes_on_disk(tmp_path) <= 2 * one


def test_the_models_share_the_budget(tmp_path: Path) -> None:
    budget = 3 * (HEAD + BLOCK)
    stores = [BlockStore(tmp_path / name, KEY, BLOCK, budget) for name in "ab"]
    for number in range(6):
        write(stores[number % 2], number)
        assert bytes_on_disk(tmp_path) <= budget
    assert read(stores[1], 5) == 1


def test_a_budget_below_one_block_writes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(tmp_path, budget=BLOCK)
    write(store, 1)
    assert (store.num_blocks, bytes_on_disk(tmp_path)) == (0, 0)
    assert "no room" in caplog.text


# --- processes ------------------------------------------------------------------------------------


def test_two_at_once_write_files_of_their_own(tmp_path: Path) -> None:
    fill(tmp_path, 0)
    first, second = open_store(tmp_path), open_store(tmp_path)
    for number in range(1, 9):
        write(first if number % 2 else second, number)
    assert read(first, 0, 1, 3, 5, 7) == read(second, 0, 2, 4, 6, 8) == 5
    assert len(segments(tmp_path)) == 2
    third = open_store(tmp_path)
    assert read(third, *range(9)) == 9
    write(third, 10)
    assert len(segments(tmp_path)) == 3


def test_what_another_process_writes_to_is_not_evicted(tmp_path: Path) -> None:
    budget = 3 * (HEAD + BLOCK)
    first = open_store(tmp_path, budget=budget)
    write(first, 1)
    (held,) = segments(tmp_path)
    os.utime(held, (1, 1))
    second = open_store(tmp_path, budget=budget)
    for number in range(2, 8):
        write(second, number)
    assert held.exists()
    assert read(first, 1) == 1


def test_a_segment_that_grew_meanwhile_is_read_again(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (path,) = segments(tmp_path)
    opened = Segment.open(path, KEY, BLOCK)
    assert opened is not None
    segment, places = opened
    assert [digest for digest, _ in places] == [digest_of(1)]
    other = open_store(tmp_path)
    write(other, 2)
    assert segment.lock() is None, "somebody else appends to it"
    other.close()
    locked = segment.lock()
    assert locked is not None
    assert [digest for digest, _ in locked] == [digest_of(1), digest_of(2)]
    segment.append([digest_of(3)], block_of(3)[np.newaxis])
    segment.close()
    assert read(open_store(tmp_path), 1, 2, 3) == 3


WRITER = """
import sys
from pathlib import Path
from test_block_store import open_store, write

store = open_store(Path(sys.argv[1]), budget=1 << 26)
for number in range(int(sys.argv[2]), 10**6, 2):
    write(store, number)
    print(number, flush=True)
"""


def start_writer(folder: Path, first: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, str(folder), str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)


def test_kill_9_loses_no_block_that_was_written(tmp_path: Path) -> None:
    """Two processes on one folder, both killed in the midst of it."""
    writers = [start_writer(tmp_path, first) for first in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
    time.sleep(0.05)
    written: list[int] = []
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        *lines, _ = writer.communicate()[0].split("\n")  # the last line may be cut off
        written += range(int(lines[-1]) % 2, int(lines[-1]) + 1, 2) if lines else ()
    with_all = open_store(tmp_path, budget=1 << 26)
    assert len(written) > 40
    assert read(with_all, *written) == len(written)


def test_a_store_that_cannot_lock_still_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 1)
    holder = open_store(tmp_path)
    with caplog.at_level(logging.WARNING):
        reader = open_store(tmp_path)
        assert read(reader, 1) == 1
    assert not caplog.text
    holder.close()
