"""The collector of cycles, kept from costing time where nothing is garbage."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Generator[None, None, None]:
    """No collection of cycles: imports and the load make many objects and no garbage (0.06 s of 0.4).

    What was made stays to the end (a vocabulary is 300,000 objects), so later collections pass it by.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
