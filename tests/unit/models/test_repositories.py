"""Hugging Face repositories, through the real huggingface_hub, against a real server on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf_bytes as gb
import pytest
from hub_server import HubServer, Repository

from outpace.errors import DownloadError, ModelNotFoundError
from outpace.models import hub
from outpace.models.checkpoint import open_checkpoint

MODEL = gb.small_file().to_bytes()
OTHER = gb.small_file(tail=64).to_bytes()
REPOSITORY = "Some-Owner/tiny.model-GGUF"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with one repository of two GGUF files, and empty caches."""
    server = HubServer(
        {REPOSITORY: Repository({"README.md": b"hi", "tiny-Q4_0.gguf": MODEL, "tiny-Q8_0.gguf": OTHER})}
    )
    monkeypatch.setenv("HF_ENDPOINT", server.start())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    for variable in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    yield server
    server.stop()


def blobs(tmp_path: Path) -> list[int]:
    """Sizes of the cache's data files."""
    return sorted(path.stat().st_size for path in (tmp_path / "hf").glob("models--*/blobs/*"))


def test_pull_resolve_list_remove(server: HubServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = hub.resolve(f"{REPOSITORY}:Q4_0", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == MODEL
    assert (
        path == tmp_path / "hf/models--Some-Owner--tiny.model-GGUF/snapshots" / ("a" * 40) / "tiny-Q4_0.gguf"
    )
    assert (seen[0], seen[-1]) == ((0, len(MODEL)), (len(MODEL), len(MODEL)))
    assert open_checkpoint(path).spec.num_layers == 1

    server.requests.clear()  # what is here needs no network
    for name in (f"{REPOSITORY}:Q4_0", f"{REPOSITORY}:tiny-Q4_0.gguf", REPOSITORY):
        assert hub.resolve(name) == path
        assert hub.locate(name) == path
    assert server.requests == []
    with pytest.raises(ModelNotFoundError, match="outpace pull"):
        hub.locate(f"{REPOSITORY}:Q8_0")

    other = hub.resolve(f"{REPOSITORY}:tiny-q8_0")
    entries = {entry.name: entry for entry in hub.list_models()}
    assert {name: (entry.path, entry.num_bytes) for name, entry in entries.items()} == {
        f"{REPOSITORY}:tiny-Q4_0.gguf": (path, len(MODEL)),
        f"{REPOSITORY}:tiny-Q8_0.gguf": (other, len(OTHER)),
    }
    assert hub.remove(f"{REPOSITORY}:Q8_0") == len(OTHER)
    assert [entry.path for entry in hub.list_models()] == [path]
    assert hub.remove(REPOSITORY) == len(MODEL)
    assert hub.list_models() == []
    assert blobs(tmp_path) == []
    with pytest.raises(ModelNotFoundError, match="not on this machine"):
        hub.remove(REPOSITORY)


def test_short_name(server: HubServer) -> None:
    server.repositories["Qwen/Qwen3-0.6B-GGUF"] = Repository({"Qwen3-0.6B-Q8_0.gguf": MODEL})
    path = hub.pull("qwen3-0.6b")
    assert path.name == "Qwen3-0.6B-Q8_0.gguf"
    assert [(entry.name, entry.path) for entry in hub.list_models()] == [("qwen3-0.6b", path)]
    assert hub.remove("qwen3-0.6b") == len(MODEL)


def test_pull_brings_the_new_version_and_resolve_keeps_the_old(server: HubServer) -> None:
    old = hub.resolve(f"{REPOSITORY}:Q4_0")
    kept = hub.resolve(f"{REPOSITORY}:Q8_0")
    server.repositories[REPOSITORY] = Repository({"tiny-Q4_0.gguf": OTHER}, commit="b" * 40)
    assert hub.resolve(f"{REPOSITORY}:Q4_0") == old
    new = hub.pull(f"{REPOSITORY}:Q4_0")
    assert new.read_bytes() == OTHER
    assert hub.resolve(f"{REPOSITORY}:Q4_0") == new
    assert hub.resolve(f"{REPOSITORY}:Q8_0") == kept  # only the old version has it
    # The new file and the old Q8_0 are the same bytes, one blob: removing one must not break the other.
    hub.remove(f"{REPOSITORY}:Q4_0")
    assert kept.read_bytes() == OTHER


def test_a_cut_connection_is_resumed(server: HubServer) -> None:
    server.repositories[REPOSITORY].files["big-Q4_0.gguf"] = MODEL + os.urandom(14 << 20)
    server.cut_after = 12 << 20  # the client keeps whole chunks of 10 MiB
    path = hub.pull(f"{REPOSITORY}:big-Q4_0.gguf")
    assert path.read_bytes() == server.repositories[REPOSITORY].files["big-Q4_0.gguf"]
    assert [start for method, _, start in server.requests if method == "GET" and start] == ["bytes=10485760-"]


def test_an_interrupted_pull_leaves_no_model_and_starts_anew(server: HubServer, tmp_path: Path) -> None:
    server.repositories[REPOSITORY].files["big-Q4_0.gguf"] = big = MODEL + os.urandom(4 << 20)
    server.seconds_per_chunk = 0.2
    name = f"{REPOSITORY}:big-Q4_0.gguf"
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from outpace.models import hub; hub.pull(sys.argv[1])", name],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.sending.wait(30)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert blobs(tmp_path) == []
    assert hub.list_models() == []
    with pytest.raises(ModelNotFoundError):
        hub.locate(name)
    server.seconds_per_chunk = 0
    assert hub.pull(name).read_bytes() == big


def test_a_wrong_checksum_is_not_kept(server: HubServer, tmp_path: Path) -> None:
    server.repositories[REPOSITORY].stated_sha256["tiny-Q4_0.gguf"] = "0" * 64
    with pytest.raises(DownloadError, match="not 0000"):
        hub.pull(f"{REPOSITORY}:Q4_0")
    assert blobs(tmp_path) == []
    assert hub.list_models() == []


def test_token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repositories[REPOSITORY].token = "hf_secret"
    with pytest.raises(ModelNotFoundError, match="set HF_TOKEN"):
        hub.pull(REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert hub.pull(REPOSITORY).read_bytes() == MODEL


def test_gated(server: HubServer) -> None:
    server.repositories[REPOSITORY].gated = True
    with pytest.raises(DownloadError, match=f"is gated; accept its terms at .*{REPOSITORY} and set HF_TOKEN"):
        hub.pull(REPOSITORY)


def test_no_such_repository_or_file(server: HubServer) -> None:
    with pytest.raises(ModelNotFoundError, match="there is none at"):
        hub.resolve("no/such-model")
    with pytest.raises(
        ModelNotFoundError, match=r"no such file; there are: tiny-Q4_0\.gguf, tiny-Q8_0\.gguf"
    ):
        hub.resolve(f"{REPOSITORY}:Q6_K")


def test_a_server_that_fails(server: HubServer) -> None:
    server.status = 500
    with pytest.raises(DownloadError, match="refused"):
        hub.resolve(REPOSITORY)


def test_a_server_without_a_commit(server: HubServer) -> None:
    server.repositories[REPOSITORY].commit = "../../elsewhere"
    with pytest.raises(DownloadError, match="names no commit"):
        hub.resolve(REPOSITORY)


def test_no_network(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hub.resolve(REPOSITORY)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.resolve(REPOSITORY) == path
    with pytest.raises(DownloadError, match="check the network"):
        hub.resolve("other/model")


def test_a_disk_that_fills_up_meanwhile(server: HubServer, tmp_path: Path) -> None:
    """On a real full disk: a small tmpfs in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("NOT TESTED: mount namespaces are not allowed here, so no disk can be filled")
    server.repositories[REPOSITORY].files["big-Q4_0.gguf"] = MODEL + os.urandom(4 << 20)
    (tmp_path / "hf").mkdir()
    script = """
import json, pathlib, sys
from outpace.errors import DownloadError
from outpace.models import hub, repositories
repositories.check_space = lambda folder, needed: None  # there was room when it was looked at
try:
    hub.pull(sys.argv[2])
except DownloadError as error:
    left = [str(p) for p in pathlib.Path(sys.argv[1]).glob("models--*/blobs/*")]
    print(json.dumps([str(error), left]))
"""
    mount = 'mount -t tmpfs -o size=2m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    arguments = [str(tmp_path / "hf"), sys.executable, script, f"{REPOSITORY}:big-Q4_0.gguf"]
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", mount, "sh", *arguments], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    message, left = json.loads(done.stdout)
    assert "no space left on the disk" in message
    assert "make room" in message
    assert left == []


def test_a_cache_that_cannot_be_written(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "hf").write_text("a file where the cache should be")
    with pytest.raises(DownloadError, match="hf"):
        hub.resolve(REPOSITORY)


def test_offline(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hub.resolve(REPOSITORY)
    server.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.resolve(REPOSITORY) == path
    for call in (hub.resolve, hub.pull):
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids the network; unset it"):
            call("other/model")
    assert server.requests == []


def test_safetensors_repository(server: HubServer, tiny_checkpoint: Callable[..., Any]) -> None:
    source = tiny_checkpoint("qwen2", "safetensors")
    files = {path.name: path.read_bytes() for path in source.path.iterdir()}
    server.repositories["Some-Owner/float"] = Repository(
        files | {"pytorch_model.bin": b"no", "onnx/x.onnx": b"no"}
    )
    directory = hub.resolve("Some-Owner/float")
    assert {path.name for path in directory.iterdir()} == set(files)
    checkpoint = open_checkpoint(directory)
    assert (checkpoint.name, checkpoint.spec.architecture) == ("Some-Owner/float", "qwen2")
    (entry,) = hub.list_models()
    assert (entry.name, entry.path, entry.num_bytes) == (
        "Some-Owner/float",
        directory,
        sum(len(data) for data in files.values()),
    )


def test_a_sharded_repository_without_a_shard_is_not_here(server: HubServer) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index} | dict.fromkeys(shards, b"x")
    server.repositories["Some-Owner/sharded"] = Repository(files)
    directory = hub.pull("Some-Owner/sharded")
    assert hub.locate("Some-Owner/sharded") == directory
    (directory / shards[1]).unlink()
    with pytest.raises(ModelNotFoundError):
        hub.locate("Some-Owner/sharded")
    assert hub.resolve("Some-Owner/sharded") == directory
    assert (directory / shards[1]).read_bytes() == b"x"


def test_split_gguf_repository(server: HubServer) -> None:
    parts = {f"big-Q4_0-{i:05d}-of-00002.gguf": bytes([i]) * 100 for i in (1, 2)}
    server.repositories["Some-Owner/big"] = Repository(dict(parts))
    path = hub.resolve("Some-Owner/big:Q4_0")
    assert path.name == "big-Q4_0-00001-of-00002.gguf"
    assert {part.name: part.read_bytes() for part in path.parent.iterdir()} == parts
    (entry,) = hub.list_models()
    assert entry.num_bytes == 200
    assert hub.remove("Some-Owner/big:Q4_0") == 200
    assert hub.list_models() == []
