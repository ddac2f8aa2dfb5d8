"""Files that several processes see: nobody removes what another one writes, or has just made."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from outpace.disk import is_held, remove_unheld


def test_what_is_locked_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_held(path)
        assert not remove_unheld(path)
        assert path.exists()
    assert not is_held(path)
    assert remove_unheld(path)
    assert not path.exists()
    assert not remove_unheld(path)
    assert not is_held(path)


def test_who_locks_a_file_that_he_has_just_made_has_it_or_sees_that_it_is_gone(tmp_path: Path) -> None:
    path, done = tmp_path / "file", threading.Event()

    def sweep() -> None:
        while not done.is_set():
            remove_unheld(path)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for _ in range(300):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            fcntl.flock(file, fcntl.LOCK_EX)
            links = os.fstat(file).st_nlink
            for _ in range(20):
                assert os.fstat(file).st_nlink == links
            os.close(file)
    finally:
        done.set()
        sweeper.join()
