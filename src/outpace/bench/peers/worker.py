"""Peers run in worker processes: commands as JSON lines on stdin, one reply line each on stdout.

A command names its operation as "op"; one that fails is answered with {"error": TEXT}. `serve` is the
worker's side, `PeerProcess` ours.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from outpace.errors import BackendError, OutpaceError

__all__ = ["PeerProcess", "serve"]


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer commands until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's, who then closes stdin
    # Libraries print to stdout too: replies get the descriptor, their prints go to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # the caller reports it
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


class PeerProcess:
    """A worker process, for `with closing(...)`.

    `name` is the peer's, `worker` its module, `package` what must be installed, else the constructor raises
    OutpaceError with `install_hint`.
    """

    def __init__(self, name: str, worker: str, package: str, install_hint: str) -> None:
        if importlib.util.find_spec(package) is None:
            raise OutpaceError(install_hint)
        self._name = name
        self._install_hint = install_hint
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, and a module of ours
            [sys.executable, "-m", worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Send one command and wait for its reply. Raises BackendError where it fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"op": operation, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            raise BackendError(
                f"{self._name} ended with status {status} during {operation}. {self._install_hint}"
            )
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BackendError(f"{self._name}: {operation}: {reply['error']}")
        return reply

    def close(self) -> None:
        """End the process, in the midst of a command if need be. Safe to call twice."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
