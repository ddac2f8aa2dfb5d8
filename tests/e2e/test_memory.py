"""Peak memory of a whole process: the weights once, the KV budget, and little else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from outpace.config import child_environment

KV_CACHE = 64 << 20
ALLOWED = 250 << 20  # interpreter, libraries, tokenizer, buffers of a step, the bandwidth probe

SCRIPT = """
import sys
from pathlib import Path
from outpace.cli.main import main
try:
    main(sys.argv[1:])
finally:
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024, file=sys.stderr)
"""


def peak_bytes(model: Path, environment: dict[str, str]) -> int:
    """The peak of `outpace run` on a short prompt."""
    arguments = ["run", "-m", str(model), "--json", "--kv-cache", str(KV_CACHE), "-n", "16", "Hello there"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1])


def test_run_keeps_weights_once(model_135m: Path) -> None:
    peak = peak_bytes(model_135m, child_environment(OUTPACE_PACKED_CACHE_BYTES="0"))
    weights = model_135m.stat().st_size
    assert weights < peak <= weights + KV_CACHE + ALLOWED


@pytest.mark.parametrize("model", ["model_135m", "model_05b"])
def test_run_keeps_weights_once_through_the_cache_of_packed_weights(
    model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(model)
    environment = child_environment(OUTPACE_CACHE=str(tmp_path), OUTPACE_PACKED_CACHE_BYTES=str(10**10))
    weights = path.stat().st_size
    for _ in ("written", "read"):
        assert weights < peak_bytes(path, environment) <= weights + KV_CACHE + ALLOWED
        assert len(list((tmp_path / "packed").iterdir())) == 1
