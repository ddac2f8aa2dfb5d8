"""The cache of packed weights: the same bits from it, and no file that is damaged, stale or half written."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from outpace import disk
from outpace.backends.native_backend import NativeBackend
from outpace.config import resolve_engine_config
from outpace.errors import UsageError
from outpace.models import hub, packed_cache
from outpace.models.checkpoint import open_checkpoint
from outpace.types import WeightFormat
from stepping import run_logits
from tiny_checkpoint import TinyFactory

FORMATS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
TOKENS = np.random.default_rng(5).integers(0, 300, 40).tolist()
LOAD = """
import sys
from pathlib import Path
from outpace.backends.native_backend import NativeBackend
from outpace.config import resolve_engine_config
from outpace.models.checkpoint import open_checkpoint
checkpoint = open_checkpoint(Path(sys.argv[1]))
config = resolve_engine_config(checkpoint.spec, {"kv_cache_bytes": 16 << 20, "num_threads": 2})
print("loading", flush=True)
print(NativeBackend(checkpoint, config).description["packed_cache"])
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, that takes tiny models too; its folder of packed weights."""
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OUTPACE_PACKED_CACHE_BYTES", raising=False)
    monkeypatch.setattr(packed_cache, "MIN_BYTES", 0)
    return tmp_path / "cache" / "packed"


@pytest.fixture
def model(tiny_checkpoint: TinyFactory, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    shutil.copy(tiny_checkpoint("qwen2-k", dtype="Q4_K").path, path)
    return path


def load(model: Path, weight_format: WeightFormat = "keep") -> tuple[str, np.ndarray]:
    """What the cache did, and the logits of a text."""
    checkpoint = open_checkpoint(model)
    config = resolve_engine_config(
        checkpoint.spec, {"kv_cache_bytes": 16 << 20, "num_threads": 2, "weight_format": weight_format}
    )
    backend = NativeBackend(checkpoint, config)
    try:
        return str(backend.description["packed_cache"]), run_logits(backend, TOKENS)
    finally:
        backend.close()


def only_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    assert path.suffix == ".packed"
    return path


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_hit_gives_the_bits_of_a_fresh_load(
    tiny_checkpoint: TinyFactory, dtype: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_checkpoint("qwen2-k", dtype=dtype).path
    states, logits = zip(load(path), load(path), strict=True)
    monkeypatch.setenv("OUTPACE_PACKED_CACHE_BYTES", "0")
    off, expected = load(path)
    assert (*states, off) == ("written", "hit", "off")
    for got in logits:
        np.testing.assert_array_equal(got, expected)


def test_a_hit_of_a_real_model_gives_the_bits_of_a_fresh_load(model_135m: Path) -> None:
    (first, expected), (second, got) = load(model_135m), load(model_135m)
    assert (first, second) == ("written", "hit")
    np.testing.assert_array_equal(got, expected)


def test_safetensors_and_weight_formats_have_files_of_their_own(
    tiny_checkpoint: TinyFactory, cache: Path
) -> None:
    path = tiny_checkpoint("llama", form="safetensors", dtype="BF16").path
    formats: tuple[WeightFormat, ...] = ("keep", "q8_0", "q4_0")
    expected = [load(path, each)[1] for each in formats]
    assert len(list(cache.iterdir())) == 3
    for weight_format, logits in zip(formats, expected, strict=True):
        state, got = load(path, weight_format)
        assert state == "hit"
        np.testing.assert_array_equal(got, logits)


@pytest.mark.parametrize("damage", ["tiles", "sums", "cut", "longer"])
def test_a_damaged_file_is_packed_anew_with_a_warning(
    model: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, expected = load(model)
    path = only_file(cache)
    size = path.stat().st_size
    with path.open("r+b") as file:
        if damage in ("tiles", "sums"):
            at = {"tiles": size - 70, "sums": 4096}[damage]
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))
        else:
            file.truncate(size + {"cut": -64, "longer": 64}[damage])
    with caplog.at_level(logging.WARNING):
        state, got = load(model)
    assert state == "written"
    assert "is damaged; the weights are packed anew" in caplog.text
    np.testing.assert_array_equal(got, expected)
    assert load(model)[0] == "hit"


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 5000, b"GGUF" * 5000])
def test_a_foreign_file_is_replaced(model: Path, cache: Path, content: bytes) -> None:
    load(model)
    only_file(cache).write_bytes(content)
    assert load(model)[0] == "written"
    assert load(model)[0] == "hit"


def test_another_layout_is_stale(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(model)
    checkpoint = open_checkpoint(model)
    found = packed_cache.find(checkpoint, "keep", layout=1, num_bytes=1000)
    other = packed_cache.find(checkpoint, "keep", layout=2, num_bytes=1000)
    assert found is not None
    assert other is not None
    assert (found.path, found.key == other.key) == (other.path, False)


@pytest.mark.parametrize("change", ["time", "size", "content"])
def test_a_changed_model_is_packed_anew(model: Path, cache: Path, change: str) -> None:
    load(model)
    if change == "time":
        os.utime(model, ns=(1, 1))
    elif change == "size":
        with model.open("ab") as file:
            file.write(bytes(64))
    else:
        data = bytearray(model.read_bytes())
        data[-20] ^= 1
        time.sleep(0.02)
        model.write_bytes(data)
    assert load(model)[0] == "written"
    only_file(cache)
    assert load(model)[0] == "hit"


def test_the_switch(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPACE_PACKED_CACHE_BYTES", "0")
    assert load(model)[0] == "off"
    assert not cache.exists()
    monkeypatch.setenv("OUTPACE_PACKED_CACHE_BYTES", "lots")
    with pytest.raises(UsageError, match="OUTPACE_PACKED_CACHE_BYTES is 'lots'"):
        load(model)


def three_models(model: Path, folder: Path, cache: Path) -> tuple[list[Path], int]:
    """Copies m0, m1, m2 whose packed weights were used in this order, and the bytes that each takes."""
    models = [folder / f"m{i}.gguf" for i in range(3)]
    for i, path in enumerate(models):
        shutil.copy(model, path)
        assert load(path)[0] == "written"
        (packed,) = cache.glob(f"m{i}-*")
        os.utime(packed, (i + 1, i + 1))
    return models, packed.stat().st_size


def test_the_least_recently_used_go_first(
    model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, size = three_models(model, tmp_path, cache)
    assert load(models[0])[0] == "hit"  # now the newest
    monkeypatch.setenv("OUTPACE_PACKED_CACHE_BYTES", str(int(size * 2.5)))
    assert load(model)[0] == "written"
    assert sorted(path.name.split("-")[0] for path in cache.iterdir()) == ["m0", "tiny"]
    monkeypatch.setenv("OUTPACE_PACKED_CACHE_BYTES", "1000")
    os.utime(model)
    assert load(model)[0] == "missed"


def test_a_lower_budget_holds_at_the_next_load_also_of_what_is_there(
    model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, size = three_models(model, tmp_path, cache)
    monkeypatch.setenv("OUTPACE_PACKED_CACHE_BYTES", str(int(size * 2.5)))
    assert load(models[0])[0] == "hit"
    assert sorted(path.name.split("-")[0] for path in cache.iterdir()) == ["m0", "m2"]
    monkeypatch.setenv("OUTPACE_PACKED_CACHE_BYTES", str(size // 2))
    assert load(models[0])[0] == "missed"
    assert not list(cache.glob("m0-*")), "it is larger than all may be"


def test_what_others_write_just_now_counts(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(model)
    packed = only_file(cache)
    size = packed.stat().st_size
    partial = cache / "other-0-keep.packed.AbCdEf.partial"
    partial.write_bytes(bytes(size))
    monkeypatch.setenv("OUTPACE_PACKED_CACHE_BYTES", str(int(size * 1.5)))
    with partial.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert load(model)[0] == "missed"
        assert not packed.exists()
    assert load(model)[0] == "written"


def test_rm_takes_the_packed_weights_too(
    model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--some--one" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "blobs").mkdir()
    blob = snapshot.parent.parent / "blobs" / "123"
    shutil.copy(model, blob)
    (snapshot / "m.gguf").symlink_to(blob)
    load(hub.locate("some/one:m.gguf"))
    load(model)
    names = {path.name.split("-")[0] for path in cache.iterdir()}
    assert names == {"m", "tiny"}
    before = blob.stat().st_size
    assert hub.remove("some/one") > before
    assert only_file(cache).name.startswith("tiny-")
    assert hub.remove(str(tmp_path / "cache")) == 0, "of a path only what was kept for it"
    assert hub.remove(str(model)) > 0
    assert list(cache.iterdir()) == []
    assert model.exists()


def test_what_a_killed_writer_left_is_swept_and_a_living_one_is_not(model: Path, cache: Path) -> None:
    load(model)
    packed = only_file(cache)
    packed.unlink()
    partial = packed.with_name(packed.name + ".AbCdEf.partial")
    partial.write_bytes(b"half")
    with partial.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert load(model)[0] == "missed"  # somebody is writing it
        assert partial.exists()
    assert load(model)[0] == "written"
    assert only_file(cache) == packed


def start_load(model: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", LOAD, str(model)], stdout=subprocess.PIPE, text=True)


def test_two_processes_that_load_at_once(model_135m: Path, cache: Path) -> None:
    both = [start_load(model_135m) for _ in range(2)]
    states = [process.communicate()[0].split()[-1] for process in both]
    assert all(process.returncode == 0 for process in both)
    assert set(states) <= {"written", "missed", "hit"}
    only_file(cache)
    assert load(model_135m)[0] == "hit"


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_writer_that_is_stopped_leaves_nothing_that_counts(
    model_135m: Path, cache: Path, sign: signal.Signals
) -> None:
    process = start_load(model_135m)
    while not list(cache.glob("*.partial")):
        assert process.poll() is None, "it ended before it wrote"
        time.sleep(0.0005)
    process.send_signal(sign)
    process.communicate()
    assert process.returncode in (-sign, 1)
    left = list(cache.glob("*.partial"))
    assert sign == signal.SIGKILL or not left
    state, _ = load(model_135m)
    assert state in ("written", "hit")  # hit: the file was whole a moment before the signal
    only_file(cache)
    assert load(model_135m)[0] == "hit"


@pytest.fixture
def small_disk(cache: Path) -> Path:
    """The cache on a file system of 3 MB."""
    cache.mkdir(parents=True)
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("NOT TESTED: a full disk needs root, to mount a small one")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(cache)], check=False)
    if done.returncode != 0:
        pytest.skip("NOT TESTED: a full disk needs the right to mount a small one")
    return cache


@pytest.mark.parametrize("checked", [True, False])
def test_a_full_disk_costs_the_file_and_nothing_else(
    model_135m: Path, small_disk: Path, checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not checked:  # it fills up between the check and the write
        monkeypatch.setattr(disk, "_FREE_BYTES", -(1 << 40))
        monkeypatch.setattr(disk, "_FREE_SHARE", 1 << 62)
    try:
        assert load(model_135m)[0] == "missed"
        assert not list(small_disk.iterdir())
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)


def test_a_folder_that_cannot_be_written_is_only_read(model: Path, small_disk: Path) -> None:
    try:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        assert load(model)[0] == "missed"
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)
    small_disk.rmdir()
    small_disk.write_text("no folder")
    assert load(model)[0] == "off"
