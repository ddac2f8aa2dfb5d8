"""What tests share: where real models are, and tiny random ones made once for a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiny_checkpoint import TinyCheckpoint, TinyFactory

# Tests pack weights themselves and fill nobody's disk; those of the cache of packed weights turn it on.
os.environ.setdefault("OUTPACE_PACKED_CACHE_BYTES", "0")
os.environ.setdefault("OUTPACE_PREFIX_CACHE_BYTES", "0")
os.environ.setdefault("OUTPACE_DRAFT_PERSIST", "0")

# Nor do a developer's own settings of servers change what tests see: this folder does not exist.
os.environ["XDG_CONFIG_HOME"] = str(Path(__file__).parent / "no-settings")
os.environ.pop("OUTPACE_CONFIG", None)

# A shell's background job ignores Ctrl-C, and so would the processes that tests start and then interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MODEL_FILES = {
    "model_135m": "smollm2-135m-instruct-q4_1.gguf",
    "model_05b": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "model_15b": "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
}


def _test_models() -> Path:
    folder = os.environ.get("OUTPACE_TEST_MODELS")
    return Path(folder) if folder else Path.home() / ".cache" / "outpace-models"


def _local_model(fixture: str) -> Path:
    path = _test_models() / MODEL_FILES[fixture]
    if not path.is_file():
        pytest.skip(f"NOT TESTED: {path} is missing; put it there or set OUTPACE_TEST_MODELS to its folder")
    return path


@pytest.fixture(scope="session")
def model_135m() -> Path:
    """SmolLM2-135M-Instruct as Q4_1, the default model: always there, brought by the hub."""
    local = _test_models() / MODEL_FILES["model_135m"]
    if local.is_file():
        return local
    from outpace.models import hub

    return hub.resolve(hub.DEFAULT_MODEL)


@pytest.fixture(scope="session")
def model_05b() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct as Q4_K_M (rows that K-quants do not fit are Q5_0 and Q8_0)."""
    return _local_model("model_05b")


@pytest.fixture(scope="session")
def model_15b() -> Path:
    """Qwen2.5-Coder-1.5B-Instruct as Q4_K_M."""
    return _local_model("model_15b")


@pytest.fixture(scope="session")
def one_torch_thread() -> Iterator[None]:
    """For the oracle's many small products: on a busy machine, threads that wait cost tenfold."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    """`tiny_checkpoint(variant, form="gguf" | "safetensors", dtype="F32", output=None)`, each made once."""
    from tiny import tiny_model, write_safetensors
    from tiny_gguf import write_gguf

    folder = tmp_path_factory.mktemp("tiny")
    made: dict[tuple[str, str, str, str | None], TinyCheckpoint] = {}

    def make(
        variant: str, form: str = "gguf", dtype: str = "F32", output: str | None = None
    ) -> TinyCheckpoint:
        key = (variant, form, dtype, output)
        if key not in made:
            model = tiny_model(variant)
            path = folder / f"{variant}-{dtype}-{output}"
            if form == "gguf":
                path = write_gguf(model, path.with_suffix(".gguf"), dtype, output)
            else:
                path = write_safetensors(model, path, dtype)
            made[key] = TinyCheckpoint(path, model)
        return made[key]

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the real models that their fixtures ask for."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MODEL_FILES:
                item.add_marker(fixture.replace("_", ""))
