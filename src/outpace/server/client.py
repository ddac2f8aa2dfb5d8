"""Who asks: the key that a request presents, and what follows from it."""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers


def presented_keys(headers: Headers) -> list[str]:
    """The keys in a request's head: of `Authorization: Bearer KEY`, then of `x-api-key: KEY`."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    keys = [key.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "").strip()]
    return [key for key in keys if key]


def client_scope(headers: Headers) -> str:
    """Whose text may be drafted for this request, as `DraftHints.scope`: one name for each key, "" for none.

    It does not tell the key: the name is a hash, which may be written to disk.
    """
    keys = presented_keys(headers)
    if not keys:
        return ""
    # Headers are latin-1.
    return hashlib.blake2b(keys[0].encode("latin-1"), digest_size=16, person=b"outpace-scope").hexdigest()
