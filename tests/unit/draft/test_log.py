"""Logs of tokens on disk: what breaks them, who writes them, how they are kept short."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kept_text import HEADER, VOCAB, VOCABULARY, log_with, read, text_of

from outpace.draft.log import TokenLog, tidy


@pytest.mark.parametrize("cut", [1, 3, 8, 11, 12, 300])
def test_an_end_that_is_cut_off_costs_the_last_record_alone(tmp_path: Path, cut: int) -> None:
    path = log_with(tmp_path, text_of(100, 1), text_of(80, 2))
    os.truncate(path, path.stat().st_size - cut)
    assert read(path) == [text_of(100, 1)]
    assert path.stat().st_size == HEADER + 8 + 400, "the end is cut off"
    log_with(tmp_path, text_of(50, 3))
    assert read(path) == [text_of(100, 1), text_of(50, 3)]


def test_damage_costs_what_follows_it(tmp_path: Path) -> None:
    path = log_with(tmp_path, text_of(100, 1), text_of(80, 2), text_of(60, 3))
    data = bytearray(path.read_bytes())
    data[HEADER + 8 + 400 + 20] ^= 1
    path.write_bytes(data)
    assert read(path) == [text_of(100, 1)]


@pytest.mark.parametrize(
    "content",
    [b"", b"OUTDRAFT", b"something else entirely, and long enough", b"\0" * 64, b"\xff" * 64],
    ids=["empty", "short", "foreign", "zeros", "ones"],
)
def test_a_file_of_something_else_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tokens"
    path.write_bytes(content)
    assert read(path) == []
    log_with(tmp_path, text_of(50))
    assert read(path) == [text_of(50)]


SOUND = [text_of(length, length) for length in (3, 1, 20, 7)]
NUM_BYTES = HEADER + sum(8 + 4 * len(record) for record in SOUND)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, NUM_BYTES - 1), st.integers(1, 255)), max_size=3),
    removed=st.tuples(st.integers(0, NUM_BYTES), st.integers(0, 60)),
    inserted=st.binary(max_size=24),
)
def test_a_log_gives_what_was_written_up_to_the_damage(
    tmp_path: Path, flips: list[tuple[int, int]], removed: tuple[int, int], inserted: bytes
) -> None:
    path = tmp_path / "x.tokens"
    path.unlink(missing_ok=True)
    log_with(tmp_path, *SOUND)
    data = bytearray(path.read_bytes())
    for at, change in flips:
        data[at] ^= change
    start, length = removed
    data[start : start + length] = inserted
    path.write_bytes(data)
    first = min([start, *(at for at, _ in flips)])
    ends = [HEADER + sum(8 + 4 * len(record) for record in SOUND[: count + 1]) for count in range(len(SOUND))]
    whole = sum(end <= first for end in ends)
    records = read(path)
    assert records[:whole] == SOUND[:whole]
    assert all(record in SOUND or record == [] for record in records), "nothing that was never written"
    assert read(path) == records, "what is damaged is cut off for good"
    log_with(tmp_path, text_of(9))
    assert read(path) == [*records, text_of(9)]


def test_tokens_beyond_the_vocabulary_are_damage(tmp_path: Path) -> None:
    path = log_with(tmp_path, [1, 2, 3], [VOCAB], [4])
    assert read(path) == [[1, 2, 3]]


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = log_with(tmp_path, text_of(50, 1))
    first, second = (TokenLog(path, VOCABULARY, 1 << 16) for _ in range(2))
    assert len(first.read()) == len(second.read()) == 1
    second.append([np.array(text_of(50, 2), np.int32)])
    first.append([np.array(text_of(50, 3), np.int32)])
    first.close()
    second.close()
    assert read(path) == [text_of(50, 1), text_of(50, 3)]


def test_another_process_s_log_is_not_removed(tmp_path: Path) -> None:
    path = log_with(tmp_path, text_of(5000))
    os.utime(path, (1, 1))
    theirs = TokenLog(path, VOCABULARY, 1 << 16)
    theirs.read()
    (tmp_path / "new.tokens").write_bytes(b"x" * 8000)
    assert tidy(tmp_path, 2000) > 0
    theirs.append([np.array(text_of(50, 2), np.int32)])
    theirs.close()
    assert read(path) == [text_of(5000), text_of(50, 2)]
    os.utime(path, (1, 1))
    assert tidy(tmp_path, 2000) == 0
    assert not path.exists()


def test_a_log_that_was_removed_meanwhile_is_not_written_to(tmp_path: Path) -> None:
    """Between opening a file and locking it, another process may have put a new one in its place."""
    path = log_with(tmp_path, text_of(50, 1))
    opened = os.open

    def replaced(file: Path, *arguments: int) -> int:
        descriptor = opened(file, *arguments)
        if file == path and not (tmp_path / "old").exists():
            os.link(path, tmp_path / "old")
            path.unlink()
        return descriptor

    log = TokenLog(path, VOCABULARY, 1 << 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", replaced)
        log.read()
    log.append([np.array(text_of(60, 2), np.int32)])
    log.close()
    assert read(path) == [text_of(60, 2)]


def test_who_says_nothing_has_no_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.tokens"
    first, second = (TokenLog(path, VOCABULARY, 1 << 16) for _ in range(2))
    assert first.read() == second.read() == []
    assert not path.parent.exists()
    first.append([np.array(text_of(50, 1), np.int32)])
    second.append([np.array(text_of(50, 2), np.int32)])
    assert (first.num_tokens, second.num_tokens) == (50, 0), "who comes first has the lock"
    first.close()
    first.append([np.array(text_of(50, 3), np.int32)])
    second.close()
    assert read(path) == [text_of(50, 1)]


def test_empty_files_are_removed_unless_somebody_writes_them(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.tokens").write_bytes(b"")
    path = log_with(tmp_path, text_of(50))
    held = TokenLog(tmp_path / "b.tokens", VOCABULARY, 1 << 16)
    held.read()
    assert tidy(tmp_path, 2000) == 0
    assert sorted(tmp_path.iterdir()) == [tmp_path / "b.tokens", path]
    held.append([np.array(text_of(60), np.int32)])
    held.close()
    assert read(tmp_path / "b.tokens") == [text_of(60)]


@pytest.mark.parametrize("length", [100, 5000])
def test_a_log_is_cut_to_its_newest_tokens(tmp_path: Path, length: int) -> None:
    """Even where the newest record alone is too long."""
    path = tmp_path / "x.tokens"
    log = TokenLog(path, VOCABULARY, 1000)
    log.read()
    said = [text_of(length, seed) for seed in range(4000 // length + 1)]
    for record in said:
        log.append([np.array(record, np.int32)])
    log.close()
    kept = [token for record in read(path) for token in record]
    everything = [token for record in said for token in record]
    assert 1000 <= len(kept) <= 2000
    assert kept == everything[-len(kept) :]


def test_cutting_a_log_where_the_disk_is_full_leaks_no_descriptor(tmp_path: Path) -> None:
    path = log_with(tmp_path, text_of(5000))
    log = TokenLog(path, VOCABULARY, 1 << 16)
    log.read()
    count = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        log.cut(2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(list(Path("/proc/self/fd").iterdir())) == count - 1, "the log's own is closed, the new one too"
    assert read(path) == [text_of(5000)]
    assert [each.name for each in tmp_path.iterdir()] == ["x.tokens"]


def test_old_logs_go_first(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / f"{number}.tokens"
        path.write_bytes(b"x" * 4000)
        os.utime(path, (number, number))
    tidy(tmp_path, 2500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.tokens", "4.tokens"]
