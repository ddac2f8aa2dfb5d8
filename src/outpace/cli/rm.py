"""`outpace rm`: remove models from this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from outpace.config import drafts_dir, prefixes_dir
from outpace.draft.log import remove_orphans
from outpace.models import hub
from outpace.models.transfer import size_text


def rm(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="As `outpace list` names them, or paths.")
    ],
) -> None:
    """Remove models from Outpace's own cache or from the Hugging Face cache, and all that was kept for them.

    Without a file, a Hugging Face repository goes as a whole. Of a path only what was kept for it goes
    (packed weights, prefixes, drafts): the model is yours and stays.
    """
    for model in models:
        own = hub.own_path(model)
        freed = hub.remove(model) + remove_orphans(drafts_dir(), own) + remove_orphans(prefixes_dir(), own)
        if own is None:
            typer.echo(f"removed {model}: {size_text(freed)}")
        elif freed == 0:
            typer.echo(f"nothing was kept for {model}")
        else:
            typer.echo(f"removed what was kept for {model}: {size_text(freed)}; the model itself stays")
