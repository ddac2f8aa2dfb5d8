"""Opening a model for a verb: with a progress bar while it is brought from the network."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from outpace.cli.collector import paused_collector
from outpace.cli.options import EngineFlags

if TYPE_CHECKING:
    from outpace.llm import LLM

ProgressCallback = Callable[[int, int], None]


@contextmanager
def open_llm(model: str, engine: EngineFlags, *, one_prompt: bool = False) -> Generator[LLM, None, None]:
    """The model, ready; closed at the end. A download's progress goes to stderr. `one_prompt`: see `LLM`."""
    with paused_collector(), download_progress(model) as report:
        from outpace.llm import LLM

        llm = LLM(model, progress=report, one_prompt=one_prompt, **engine.as_config())
    try:
        yield llm
    finally:
        llm.close()


@contextmanager
def download_progress(title: str) -> Generator[ProgressCallback, None, None]:
    """A callback for (bytes done, bytes in all) that draws a bar on stderr from its first call on.

    Where stderr is no terminal, one line at the start stands for the bar.
    """
    if not sys.stderr.isatty():
        yield _announce(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task(f"bringing {title}", total=None)

    def report(done: int, total: int) -> None:
        progress.start()  # does nothing when it runs already
        progress.update(task, completed=done, total=total or None)

    try:
        yield report
    finally:
        progress.stop()


def _announce(title: str) -> ProgressCallback:
    announced = False

    def report(_done: int, total: int) -> None:
        nonlocal announced
        if not announced:
            announced = True
            size = f" ({total / 1e6:.0f} MB)" if total else ""
            print(f"bringing {title}{size} ...", file=sys.stderr, flush=True)

    return report
