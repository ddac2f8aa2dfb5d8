"""API keys that have names: made, kept as hashes in a file, and recognised.

A key is 256 random bits, so its SHA-256 is all that is kept. Slow, salted hashes (scrypt) are for what people
choose, which can be guessed from a list; nobody can try 2^256 keys, and equal keys never occur. The fast hash
costs a request microseconds where scrypt would cost tens of milliseconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from outpace.config import keys_file
from outpace.errors import OutpaceError, UsageError
from outpace.server.limits import KeyLimits

_log = logging.getLogger("outpace.server")

_PREFIX = "sk-outpace-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class NamedKey:
    """A key as it is kept: its name, its SHA-256 in hexadecimal, when it was made (ISO 8601), its limits."""

    name: str
    sha256: str
    created: str
    limits: KeyLimits = field(default_factory=KeyLimits)


class _File(BaseModel):
    version: int
    keys: list[NamedKey]


def digest_of(key: str) -> str:
    """What is kept of a key, or compared with what is kept. Headers are latin-1."""
    return hashlib.sha256(key.encode("latin-1")).hexdigest()


def find_key(keys: Sequence[NamedKey], presented: Sequence[str]) -> NamedKey | None:
    """The key of the first of `presented` that is known, in a time that tells nothing about the others."""
    found: NamedKey | None = None
    for digest in map(digest_of, presented):
        for key in keys:
            if hmac.compare_digest(digest, key.sha256) and found is None:
                found = key
    return found


def read_keys(path: Path) -> tuple[NamedKey, ...]:
    """The keys in the file. Raises `UsageError` where it is missing, damaged, or others may write to it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read()
    except OSError as error:
        remedy = f"outpace keys add NAME{'' if path == keys_file() else f' --file {path}'} makes it"
        raise UsageError(f"{path}: the keys can't be read: {error.strerror or error}; {remedy}") from None
    if mode & 0o022:
        raise UsageError(f"{path}: others may write to it, and so let themselves in; chmod 600 it")
    try:
        content = _File.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise UsageError(f"{path}: this is no file of keys: {problem}") from None
    names = [key.name for key in content.keys]
    sound = all(_NAME.fullmatch(key.name) and _DIGEST.fullmatch(key.sha256) for key in content.keys)
    if content.version != 1 or not sound or len(set(names)) != len(names):
        raise UsageError(f"{path}: this is no file of keys that this version of Outpace writes")
    return tuple(content.keys)


class KeyFile:
    """The keys of a file as it is now: it is looked at once a second at most, and read where it has changed.

    A file that can't be read any more lets nobody in, and the log says why: who removes it, or a key, wants
    that nobody comes in by it.
    """

    _LOOK_EVERY = 1.0  # seconds

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `UsageError` as `read_keys` does."""
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._stamp = _stamp(path)  # before it is read: what changes meanwhile is seen later
        self._keys = read_keys(path)

    def __call__(self) -> tuple[NamedKey, ...]:
        """The keys; the same object while the file is the same."""
        now = self._clock()
        if now - self._looked_at >= self._LOOK_EVERY:
            self._looked_at = now
            self._look()
        return self._keys

    def _look(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except UsageError as error:
            self._keys = ()
            _log.error("its keys let nobody in: %s", error)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Changes with the file's content and its mode; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def add_key(path: Path, name: str, limits: KeyLimits | None = None) -> str:
    """Make a key and keep its hash under `name`; returns the key, which nothing can show again.

    Raises `UsageError` for a bad name or one that is taken, `OutpaceError` where the file can't be written.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a key: letters, digits, '.', '_' and '-', 64 at most")
    with _locked(path):
        keys = read_keys(path) if path.exists() else ()
        if any(key.name == name for key in keys):
            raise UsageError(f"{path} has a key {name!r} already; outpace keys rm {name} removes it")
        secret = _PREFIX + secrets.token_urlsafe(32)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        _write(path, (*keys, NamedKey(name, digest_of(secret), created, limits or KeyLimits())))
    return secret


def remove_key(path: Path, name: str) -> None:
    """Forget a key. Raises `UsageError` where there is none of that name."""
    keys = read_keys(path)  # before the lock, which would make a missing folder
    with _locked(path):
        keys = read_keys(path)
        kept = tuple(key for key in keys if key.name != name)
        if len(kept) == len(keys):
            names = ", ".join(key.name for key in keys) or "none"
            raise UsageError(f"{path} has no key {name!r}; its keys: {names}")
        _write(path, kept)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """One writer at a time, or one of two new keys would be lost. The folder is locked: no file is left."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise OutpaceError(f"{path.parent}: {error.strerror or error}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, keys: Sequence[NamedKey]) -> None:
    """Replace the file at once: readers see the old keys or the new ones. Mode 0600, as mkstemp's."""
    text = json.dumps({"version": 1, "keys": [asdict(key) for key in keys]}, indent=2) + "\n"
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutpaceError(f"{path}: the keys can't be written: {error.strerror or error}") from None
