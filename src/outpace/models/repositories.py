"""Models in Hugging Face repositories, through huggingface_hub and its standard cache.

What is in the cache is used without a word to the network; `pull` asks the hub for newer files.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from outpace.config import HuggingFaceSettings, huggingface_settings
from outpace.disk import is_disk_full
from outpace.errors import DownloadError, ModelFormatError, ModelNotFoundError, OutpaceError
from outpace.models.reference import RepositoryReference
from outpace.models.safetensors import INDEX_NAME, shard_names
from outpace.models.selection import gguf_models, select
from outpace.models.transfer import (
    ProgressCallback,
    check_space,
    disk_full,
    folder_bytes,
    sha256_of,
    watched,
)

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_METADATA_SECONDS = 20.0


def cached_repository(reference: RepositoryReference) -> Path | None:
    """The model in the cache, whole; None where it is not. Never touches the network."""
    for snapshot in _snapshots(huggingface_settings(), reference.repository):
        names = _files(snapshot)
        try:
            selection = select(reference, names)
            if INDEX_NAME in selection.files and not shard_names(snapshot / INDEX_NAME) <= set(names):
                continue
        except (ModelNotFoundError, ModelFormatError):
            continue
        return snapshot / selection.entry if selection.entry else snapshot
    return None


def repository_models() -> Iterator[tuple[RepositoryReference, Path, int]]:
    """The models in the cache: each GGUF file, and each whole safetensors directory; their bytes on disk."""
    settings = huggingface_settings()
    for folder in sorted(settings.cache_dir.glob("models--*--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        files: dict[str, Path] = {}
        for snapshot in _snapshots(settings, repository):
            for name in gguf_models(_files(snapshot)):
                files.setdefault(name, snapshot)
        for name, snapshot in files.items():
            reference = RepositoryReference(repository, name)
            yield reference, snapshot / name, _selected_bytes(reference, snapshot)
        whole = RepositoryReference(repository)
        found = cached_repository(whole)
        if found is not None and found.is_dir():
            yield whole, found, _selected_bytes(whole, found)


def remove_repository(reference: RepositoryReference) -> int:
    """Remove a repository's files from the cache, or one GGUF file of it; the bytes that this freed.

    A file's data goes only where no other version in the cache shares it.
    """
    settings = huggingface_settings()
    folder = _repository_folder(settings, reference.repository)
    if not folder.is_dir():
        raise ModelNotFoundError(f"{reference}: is not on this machine")
    before = folder_bytes(folder / "blobs")
    if not reference.file:
        shutil.rmtree(folder)
        shutil.rmtree(settings.cache_dir / ".locks" / folder.name, ignore_errors=True)
        return before
    found = [s for s in _snapshots(settings, reference.repository) if _holds(reference, s)]
    if not found:
        raise ModelNotFoundError(f"{reference}: is not on this machine")
    for snapshot in found:
        for name in select(reference, _files(snapshot)).files:
            _remove_file(folder, snapshot / name)
    return before - folder_bytes(folder / "blobs")


def _holds(reference: RepositoryReference, snapshot: Path) -> bool:
    try:
        select(reference, _files(snapshot))
    except ModelNotFoundError:
        return False
    return True


def _selected_bytes(reference: RepositoryReference, snapshot: Path) -> int:
    return sum((snapshot / name).stat().st_size for name in select(reference, _files(snapshot)).files)


def _remove_file(folder: Path, link: Path) -> None:
    blob = link.resolve()
    link.unlink()
    others = (path.resolve() for path in (folder / "snapshots").rglob("*") if path.is_symlink())
    if blob.is_relative_to(folder.resolve()) and blob not in others:
        blob.unlink(missing_ok=True)


def _files(snapshot: Path) -> list[str]:
    return [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]


def pull_repository(reference: RepositoryReference, progress: ProgressCallback | None) -> Path:
    """Bring the model's files into the cache, each checked against the hub's SHA-256.

    Raises `ModelNotFoundError` (no such repository or file) or `DownloadError` (offline, refused, disk
    full, wrong checksum). An interrupted file starts anew; whole ones are kept.
    """
    settings = huggingface_settings()
    if settings.offline:
        raise DownloadError(
            f"{reference}: is not in {settings.cache_dir}, and HF_HUB_OFFLINE forbids the network; unset it, "
            "or give the path of a model file"
        )
    try:
        return _pull(reference, settings, progress)
    except OutpaceError:
        raise
    except PermissionError as error:
        raise DownloadError(f"{error.filename}: cannot be written; set HF_HOME to another folder") from error
    except Exception as error:  # huggingface_hub raises its own, its HTTP client's and OSErrors
        raise _explained(reference, settings, error) from error


def _pull(
    reference: RepositoryReference, settings: HuggingFaceSettings, progress: ProgressCallback | None
) -> Path:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=settings.endpoint, token=settings.token)
    info = api.model_info(reference.repository, files_metadata=True, timeout=_METADATA_SECONDS)
    commit = info.sha or ""
    if not commit.isalnum():  # it becomes a folder's name
        raise DownloadError(f"{reference}: {settings.endpoint} names no commit")
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    selection = select(reference, list(siblings))
    wanted = [siblings[name] for name in selection.files]
    folder = _repository_folder(settings, reference.repository)
    missing = [s for s in wanted if not (folder / "snapshots" / commit / s.rfilename).exists()]
    total = sum(sibling.size or 0 for sibling in missing)
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    check_space(settings.cache_dir, total)
    with _quiet(), watched(folder / "blobs", total, progress if missing else None):
        for sibling in wanted:
            path = api.hf_hub_download(  # pyright: ignore[reportUnknownMemberType] (tqdm has no types)
                reference.repository,
                sibling.rfilename,
                revision=commit,
                cache_dir=settings.cache_dir,
            )
            if sibling in missing:
                _verify(Path(path), sibling)
    _remember_main(folder, commit)
    snapshot = folder / "snapshots" / commit
    return snapshot / selection.entry if selection.entry else snapshot


def _verify(path: Path, sibling: RepoSibling) -> None:
    """Check a file that has just come against the hub's checksum; a wrong one is removed."""
    expected = sibling.lfs.sha256 if sibling.lfs else None
    if expected is None or (got := sha256_of(path)) == expected:
        return
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    raise DownloadError(
        f"{sibling.rfilename}: the SHA-256 is {got}, not {expected}; the file was removed, pull it again"
    )


def _remember_main(folder: Path, commit: str) -> None:
    """Point the cache's `main` at the commit that was brought: only now is it whole."""
    reference = folder / "refs" / "main"
    reference.parent.mkdir(parents=True, exist_ok=True)
    partial = reference.with_name("main.partial")
    partial.write_text(commit)
    partial.replace(reference)


def _snapshots(settings: HuggingFaceSettings, repository: str) -> list[Path]:
    """The versions in the cache, the one that `main` points at first, then the newest."""
    folder = _repository_folder(settings, repository)
    try:
        main = (folder / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        main = ""
    snapshots = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    return sorted(snapshots, key=lambda path: (path.name == main, path.stat().st_mtime), reverse=True)


def _repository_folder(settings: HuggingFaceSettings, repository: str) -> Path:
    return settings.cache_dir / f"models--{repository.replace('/', '--')}"


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Without huggingface_hub's own progress bars: Outpace draws one."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where HF_HUB_DISABLE_PROGRESS_BARS has settled it
        disable_progress_bars()
        try:
            yield
        finally:
            if not were_disabled:
                enable_progress_bars()


def _explained(
    reference: RepositoryReference, settings: HuggingFaceSettings, error: Exception
) -> OutpaceError:
    """huggingface_hub's error in plain words, with what to do."""
    from huggingface_hub import errors

    page = f"{settings.endpoint}/{reference.repository}"
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(f"{reference}: is gated; accept its terms at {page} and set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return ModelNotFoundError(
            f"{reference}: there is none at {settings.endpoint}; check the name, set HF_TOKEN if it is closed"
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return ModelNotFoundError(f"{reference}: the repository has no such file")
    if isinstance(error, errors.HfHubHTTPError):
        return DownloadError(f"{reference}: {settings.endpoint} refused: {_first_line(error)}")
    if isinstance(error, OSError) and is_disk_full(error):
        return disk_full(settings.cache_dir)
    return DownloadError(
        f"{reference}: could not be brought from {settings.endpoint}; check the network and try again, "
        f"or give the path of a model file ({type(error).__name__}: {_first_line(error)})"
    )


def _first_line(error: Exception) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
