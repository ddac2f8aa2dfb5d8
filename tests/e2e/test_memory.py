"""Peak memory of a whole process: the weights once, the KV budget, and little else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_run_keeps_weights_once(model_135m: Path) -> None:
    arguments = [
        "run",
        "-m",
        str(model_135m),
        "--json",
        "--kv-cache",
        str(KV_CACHE),
        "-n",
        "16",
        "Hello there",
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stderr.split()[-1])
    weights = model_135m.stat().st_size
    assert weights < peak <= weights + KV_CACHE + ALLOWED
