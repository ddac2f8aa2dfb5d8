"""A real `outpace serve` to measure: a process with a cache folder of its own, seen from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from outpace.config import child_environment
from outpace.errors import OutpaceError

__all__ = ["ServerProcess", "read_metrics"]

_SERVING = re.compile(r"^serving (.*) at (http://[^ ]+)/v1 ")
_STOP_SECONDS = 60.0  # what a server may take to end, its running requests included
# prctl(PR_SET_PDEATHSIG, SIGTERM), which holds for what is executed then: kill -9 of us leaves no server.
_ENDS_WITH_US = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15)\n"
    "if os.getppid() == int(sys.argv[1]): os.execv(sys.argv[2], sys.argv[2:])"
)
_TOLD = 2000  # characters of a failed server's last words


class ServerProcess:
    """Starts `outpace serve MODEL --port 0 ...` and ends it (context manager).

    It reads none of the user's settings, and what it would keep on disk goes with it.
    Raises `OutpaceError`, with what the server said, where it does not come up.
    """

    def __init__(self, model: str, arguments: Sequence[str] = (), **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="outpace-bench-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        self._log = (folder / "stderr").open("w+", encoding="utf-8", errors="replace")
        alone = {
            "OUTPACE_CACHE": str(folder / "cache"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "OUTPACE_CONFIG": "",
            "OUTPACE_API_KEY": "",
        }
        starter = [sys.executable, "-c", _ENDS_WITH_US, str(os.getpid())] if sys.platform == "linux" else []
        # A process group of its own: Ctrl-C is for who measures, who then ends the server in order.
        self._process = subprocess.Popen(  # noqa: S603 - this program
            [*starter, sys.executable, "-m", "outpace", "serve", model, "--port", "0", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=child_environment(**{**alone, **environment}),
            process_group=0,
        )
        try:
            self.model, self.url = self._wait_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ServerProcess:
        """The process, serving."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""
        self.close()

    def _wait_ready(self) -> tuple[str, str]:
        assert self._process.stdout is not None
        found = _SERVING.match(self._process.stdout.readline())
        if found is None:
            self._process.wait(_STOP_SECONDS)
            raise OutpaceError(f"the server did not start: {self.log()[-_TOLD:].strip()}")
        return found[1], found[2]

    def rss_bytes(self) -> int:
        """The memory that it holds now (VmRSS), files that it maps included; 0 where it has ended."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return 0
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        return 1024 * int(found[1]) if found else 0

    def num_sockets(self) -> int:
        """Its open sockets."""
        count = 0
        for link in Path(f"/proc/{self._process.pid}/fd").glob("*"):
            try:
                count += str(link.readlink()).startswith("socket:")
            except OSError:  # closed meanwhile
                continue
        return count

    def cpu_seconds(self) -> float:
        """Processor time that it took so far, all threads together."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def log(self) -> str:
        """What it has written to stderr."""
        self._log.flush()
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")

    def stop(self) -> int | None:
        """Ask it to end (SIGTERM); its exit code, None where it had to be killed."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None

    def close(self) -> None:
        """End it, and remove what it kept."""
        self.stop()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
        self._folder.cleanup()


def read_metrics(text: str) -> Mapping[str, float]:
    """Prometheus' text: each name's samples added up over their labels."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            sample, value = line.rsplit(" ", 1)
            name = sample.split("{", 1)[0]
            values[name] = values.get(name, 0.0) + float(value)
    return values
