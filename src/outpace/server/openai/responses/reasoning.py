"""Thoughts in a reasoning item's `encrypted_content`, for clients that send them back without a store.

It is no secret, whatever the wire calls it: the client is shown the thoughts in the item's `content` anyhow.
But many clients keep and send back this field alone.
"""

from __future__ import annotations

import base64
import binascii

_PREFIX = "outpace1:"


def wrapped(thoughts: str) -> str:
    """The thoughts as an `encrypted_content`."""
    return _PREFIX + base64.b64encode(thoughts.encode("utf-8", "replace")).decode()


def unwrapped(content: str | None) -> str:
    """The thoughts in an `encrypted_content`; "" for one that this server has not written."""
    if content is None or not content.startswith(_PREFIX):
        return ""
    try:
        return base64.b64decode(content.removeprefix(_PREFIX), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
