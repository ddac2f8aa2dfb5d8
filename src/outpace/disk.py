"""What processes that share a folder must know: who has a file locked, and what may still be written."""

from __future__ import annotations

import errno
import fcntl
import shutil
from contextlib import suppress
from pathlib import Path

__all__ = ["is_disk_full", "is_held", "remove_unheld", "writable_bytes"]

_FREE_BYTES = 1 << 30  # what is left free on the disk, at the least
_FREE_SHARE = 20  # and one part in so many of the disk


def is_held(path: Path) -> bool:
    """Whether a process has a lock on this file: it keeps one for as long as it writes."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def remove_unheld(path: Path) -> bool:
    """Remove a file that no process has a lock on; whether that was done.

    It is locked meanwhile: who has just made it and waits for the lock then sees that it is gone.
    """
    with suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False


def writable_bytes(folder: Path) -> int:
    """Bytes that may be written in the folder so that enough of its disk stays free; `OSError` without one.

    Below zero where too little is free as it is.
    """
    disk = shutil.disk_usage(folder)
    return disk.free - max(_FREE_BYTES, disk.total // _FREE_SHARE)


def is_disk_full(error: OSError) -> bool:
    """Whether an error says that there is no room: the disk is full or a quota is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
