"""`outpace bench record`: a proxy that records what a client asks."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def record(
    out: Annotated[Path, typer.Argument(help="The trace, JSON lines; what it has already stays.")],
    *,
    to: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0: any.")] = 8001,
) -> None:
    """Pass on what clients and a server say to each other, and keep what was asked and how long it took.

    Start it beside the server and give clients its address (`outpace launch CLIENT --url ADDRESS`). Bytes
    pass unchanged and as they come, in any dialect; Ctrl-C ends it. `outpace bench serve --trace FILE` asks
    the same of any server again.

    Requests are kept whole, with all that the client put into them; keys and cookies are in headers, which
    are not kept. Answers are not kept, but for their numbers of tokens. Only this machine can connect.
    """
    from outpace.bench.record import Recorder

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    recorder = Recorder(to, out, port=port, say=say)
    with suppress(KeyboardInterrupt):
        asyncio.run(recorder.run(lambda url: say(f"recording {to} at {url} into {out} (Ctrl-C ends it)")))
    say(f"{recorder.num_exchanges} requests recorded")
