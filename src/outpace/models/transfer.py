"""What every download shares: progress by bytes, a lock, checksums, and errors in plain words."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from outpace.errors import DownloadError

ProgressCallback = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), 0 where the total is unknown; perhaps from another thread."""

_SAMPLE_SECONDS = 0.1


@contextmanager
def watched(folder: Path, total: int, progress: ProgressCallback | None) -> Generator[None, None, None]:
    """Report how many bytes `folder` gains while the block runs, whoever writes them."""
    if progress is None:
        yield
        return
    report = progress
    before = folder_bytes(folder)
    stop = threading.Event()

    def sample() -> None:
        done = 0
        while not stop.wait(_SAMPLE_SECONDS):
            # Files are moved and unpacked meanwhile: it never goes back.
            done = max(folder_bytes(folder) - before, done)
            report(min(done, total) if total else done, total)

    report(0, total)
    thread = threading.Thread(target=sample, name="outpace-download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    report(total or max(folder_bytes(folder) - before, 0), total)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder. Files may come and go meanwhile."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += (Path(parent) / name).stat().st_size
    return total


@contextmanager
def locked(lock_file: Path) -> Generator[None, None, None]:
    """Hold a lock between processes. The system drops it with the process, however that ends."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256_of(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_space(folder: Path, needed: int) -> None:
    """Raise `DownloadError` where the disk has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"{folder}: the disk has {size_text(free)} free, the download needs {size_text(needed)}; "
            "make room, or set OUTPACE_CACHE or HF_HOME to another disk"
        )


def disk_full(folder: Path) -> DownloadError:
    """The error for a disk that ran full during a download, of which nothing is kept."""
    return DownloadError(
        f"{folder}: no space left on the disk, nothing was kept; make room, or set OUTPACE_CACHE or HF_HOME "
        "to another disk"
    )


def size_text(num_bytes: int) -> str:
    """Bytes for people: "98 MB"."""
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
