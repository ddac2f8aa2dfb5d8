"""Text that earlier requests said: who may see it, how long it is kept, and what breaks."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kept_text import VOCAB, VOCABULARY, guessed, said, shared, text_of

from outpace.draft.log import Vocabulary, model_folder, remove_orphans
from outpace.draft.store import SharedText


def test_what_one_request_said_is_proposed_to_the_next() -> None:
    tokens = text_of(200)
    with shared(None) as text:
        assert guessed(text, tokens[50:60]) == []
        text.add(said(tokens))
        assert guessed(text, tokens[50:60]) == tokens[60:68]


def test_it_survives_a_restart(tmp_path: Path) -> None:
    tokens = text_of(200)
    with shared(tmp_path) as text:
        text.add(said(tokens))
    with shared(tmp_path) as text:
        assert guessed(text, tokens[50:60]) == tokens[60:68]


@pytest.mark.parametrize("restart", [False, True])
def test_scopes_never_see_each_other(tmp_path: Path, restart: bool) -> None:
    mine, yours = text_of(200, 1), text_of(200, 2)

    def check(text: SharedText) -> None:
        assert guessed(text, mine[50:60], "me") == mine[60:68]
        assert guessed(text, yours[50:60], "you") == yours[60:68]
        assert guessed(text, mine[50:60], "you") == []
        assert guessed(text, yours[50:60], "me") == []
        assert guessed(text, mine[50:60], "") == []

    with shared(tmp_path) as text:
        text.add(said(mine, "me"))
        text.add(said(yours, "you"))
        if not restart:
            check(text)
    if restart:
        with shared(tmp_path) as text:
            check(text)


def test_with_all_there_is_one_scope(tmp_path: Path) -> None:
    tokens = text_of(100)
    with shared(tmp_path, sharing="all") as text:
        text.add(said(tokens, "me"))
        assert guessed(text, tokens[50:60], "you") == tokens[60:68]


def test_a_prompt_is_kept_once() -> None:
    """What was in the prefix cache was kept when it came; of further choices the output alone is new."""
    tokens = text_of(400)
    with shared(None) as text:
        text.add(said(tokens, num_prompt_tokens=300, num_cached_tokens=256))
        assert guessed(text, tokens[100:110]) == []
        assert guessed(text, tokens[280:290]) == tokens[290:298]
        text.add(said([*tokens[:300], *text_of(100, 9)], num_prompt_tokens=300, index=1))
        assert guessed(text, tokens[200:210]) == []
        text.flush()
        assert text.index("").size < 300


def test_nothing_crosses_from_one_request_to_another() -> None:
    a, b = text_of(100, 1), text_of(100, 2)
    with shared(None) as text:
        text.add(said(a))
        text.add(said(b))
        assert guessed(text, a[-10:]) == []
        assert guessed(text, a[-14:-4]) == a[-4:]


def test_memory_and_disk_are_bounded(tmp_path: Path) -> None:
    capacity = 4096
    with shared(tmp_path, capacity=capacity) as text:
        for seed in range(60):
            text.add(said(text_of(500, seed), "one"))
            text.flush()
        newest = text_of(500, 59)
        assert guessed(text, newest[50:60], "one") == newest[60:68]
        assert guessed(text, text_of(500, 0)[50:60], "one") == []
        on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.tokens"))
        assert on_disk <= 2 * capacity * 4 + 4096
    with shared(tmp_path, capacity=capacity) as text:
        assert guessed(text, newest[50:60], "one") == newest[60:68]


def test_scopes_that_are_not_used_leave_memory_and_come_back(tmp_path: Path) -> None:
    with shared(tmp_path, capacity=2048) as text:
        for number in range(8):
            text.add(said(text_of(600, number), str(number)))
            text.flush()
        assert len(text._scopes.all()) < 8
        first_kept = text_of(600, 6)
        assert guessed(text, first_kept[50:60], "6") == first_kept[60:68]


def num_bytes(text: SharedText) -> int:
    """What the indices in memory take."""
    return sum(scope.index.num_bytes for scope in text._scopes.all())


def test_scopes_that_grow_share_the_memory() -> None:
    """All are in use, and each says more than all together may keep."""
    capacity, names = 1 << 13, ["a", "b", "c", "d"]
    with shared(None, capacity=capacity) as text:
        for name in names:
            text.index(name)
        text.flush()
        for number in range(40):
            for i, name in enumerate(names):
                text.add(said(text_of(500, 100 * i + number), name))
                text.flush()
                assert num_bytes(text) <= 40 * capacity
        assert [scope.index.ring_size for scope in text._scopes.all()] == [capacity // 4] * 4
        for i, name in enumerate(names):
            tokens = text_of(500, 100 * i + 39)
            assert guessed(text, tokens[50:60], name) == tokens[60:68]


def test_a_scope_that_nobody_uses_gives_its_memory_to_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity = 1 << 13
    with shared(None, capacity=capacity) as text:
        for number in range(20):
            text.add(said(text_of(500, number), "idle"))
        text.flush()
        assert num_bytes(text) == 40 * capacity
        monkeypatch.setattr("outpace.draft.scopes._IN_USE", 0.0)
        for number in range(20):
            text.add(said(text_of(500, number), "busy"))
            text.flush()
            assert num_bytes(text) <= 40 * capacity
        assert [scope.name for scope in text._scopes.all()] == ["busy"]


def test_many_scopes_stay_within_the_memory(tmp_path: Path) -> None:
    with shared(tmp_path, capacity=1 << 14) as text:
        for number in range(100):
            text.add(said(text_of(1500, number), str(number)))
            text.flush()
            assert num_bytes(text) <= 40 << 14
        assert guessed(text, text_of(1500, 99)[700:710], "99") == text_of(1500, 99)[710:718]


def test_a_scope_that_leaves_memory_just_now_keeps_what_is_added(tmp_path: Path) -> None:
    """It may leave between a request's end and the moment when the request's text is taken in."""
    first, second = text_of(200, 1), text_of(200, 2)
    with shared(tmp_path) as text:
        text.add(said(first, "mine"))
        text.flush()
        text._put(text._scopes.close)
        text.add(said(second, "mine"))
        for tokens in (first, second):
            assert guessed(text, tokens[50:60], "mine") == tokens[60:68]
    with shared(tmp_path) as text:
        for tokens in (first, second):
            assert guessed(text, tokens[50:60], "mine") == tokens[60:68]


def test_files_are_private(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "drafts", tmp_path / "model.gguf")
    with shared(folder) as text:
        text.add(said(text_of(100), "a secret key"))
        text.flush()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (log,) = folder.glob("*.tokens")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "secret" not in log.name


def test_logs_of_models_that_are_gone_are_removed(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_text("")
    folder = model_folder(tmp_path / "drafts", model)
    with shared(folder) as text:
        text.add(said(text_of(100)))
    assert remove_orphans(tmp_path / "drafts") == 0
    model.unlink()
    assert remove_orphans(tmp_path / "drafts") > 400
    assert not folder.exists()


@pytest.mark.parametrize(
    "other", [Vocabulary(VOCAB + 1, VOCABULARY.digest), Vocabulary(VOCAB, b"theirs".ljust(32))]
)
def test_another_vocabulary_begins_anew(tmp_path: Path, other: Vocabulary) -> None:
    tokens = text_of(200)
    with shared(tmp_path) as text:
        text.add(said(tokens))
    with shared(tmp_path, vocabulary=other) as text:
        assert guessed(text, tokens[50:60]) == []
        text.add(said(tokens))
    with shared(tmp_path, vocabulary=other) as text:
        assert guessed(text, tokens[50:60]) == tokens[60:68]


def test_a_full_disk_ends_the_writing_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit on the size of files stands in for the disk: the kernel refuses the rest in the same place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    tokens = text_of(2000)
    try:
        with shared(tmp_path) as text:
            text.add(said(tokens))
            text.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
            text.add(said(text_of(3000, 2)))
            text.flush()
            assert guessed(text, text_of(3000, 2)[50:60]) == text_of(3000, 2)[60:68], "memory has it"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert "no longer kept on disk" in caplog.text
    with shared(tmp_path) as text:
        assert guessed(text, tokens[50:60]) == tokens[60:68]


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tokens = text_of(100)
    with shared(tmp_path / "file" / "folder") as text:
        text.add(said(tokens))
        assert guessed(text, tokens[50:60]) == tokens[60:68]


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    text = SharedText(tmp_path, vocabulary=lambda: VOCABULARY, capacity=100, sharing="scope")
    text.close()
    text.close()


def test_logs_that_are_written_stay_and_are_cut(tmp_path: Path) -> None:
    capacity = 4096
    with shared(tmp_path, capacity=capacity) as text:
        for number in range(30):
            for i, name in enumerate("ab"):
                text.add(said(text_of(500, 100 * i + number), name))
                text.flush()
            on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.tokens"))
            assert on_disk <= 4 * 2 * capacity
    with shared(tmp_path, capacity=capacity) as text:
        for i, name in enumerate("ab"):
            tokens = text_of(500, 100 * i + 29)
            assert guessed(text, tokens[50:60], name) == tokens[60:68]


WRITER = """
import sys
import time
from pathlib import Path
from outpace.draft.store import SharedText
from kept_text import VOCABULARY, said, text_of

text = SharedText(Path(sys.argv[1]), vocabulary=lambda: VOCABULARY, capacity=1 << 20, sharing="scope")
for seed in range(int(sys.argv[2])):
    text.add(said(text_of(300, seed)))
print("added", flush=True)
time.sleep(600)
"""


def test_kill_9_loses_at_most_the_last_seconds(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, str(tmp_path), "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "added\n"
        time.sleep(2.5)
        process.send_signal(signal.SIGKILL)
    with shared(tmp_path, capacity=1 << 20) as text:
        for seed in range(20):
            tokens = text_of(300, seed)
            assert guessed(text, tokens[50:60]) == tokens[60:68]
        text.add(said(text_of(300, 12345)))
    with shared(tmp_path, capacity=1 << 20) as text:
        tokens = text_of(300, 12345)
        assert guessed(text, tokens[50:60]) == tokens[60:68]
