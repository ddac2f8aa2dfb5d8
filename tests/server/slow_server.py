"""A server in a process of its own, for signals: the null backend, 10 ms a step. Prints its address.

Run as `python slow_server.py MODEL GRACE`, where GRACE is `--grace`, in seconds.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from serving import KV_CACHE_BYTES, MAX_CONTEXT

from outpace.llm import LLM
from outpace.server.run import listen, serve, url_of
from outpace.server.settings import ServerSettings


def main(model: str, grace: str) -> None:
    settings = ServerSettings(port=0, shutdown_grace=float(grace))
    with (
        LLM(
            model, backend="null", max_context=MAX_CONTEXT, kv_cache_bytes=KV_CACHE_BYTES, draft="off"
        ) as llm,
        listen(settings) as listener,
    ):
        step = llm.backend.step

        def slow_step(batch: Any) -> Any:
            time.sleep(0.01)
            return step(batch)

        llm.backend.step = slow_step  # type: ignore[method-assign]
        serve(
            llm,
            settings,
            listener,
            model_name="test-model",
            on_ready=lambda _: print(url_of(listener), flush=True),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
