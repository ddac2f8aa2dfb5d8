"""Who asks: the key that a request presents, and what follows from it."""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

CLIENT = "client"
"""Where `KeyAuth` leaves the scope of the key that it let in, in the request's state."""


def presented_keys(headers: Headers) -> list[str]:
    """The keys in a request's head: of `Authorization: Bearer KEY`, then of `x-api-key: KEY`."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    keys = [key.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "").strip()]
    return [key for key in keys if key]


def client_scope(request: HTTPConnection) -> str:
    """Whose text may be drafted for this request, as `DraftHints.scope`: one for each client, "" for none.

    A client is a name where keys have names, so that a renewed key finds what the old one left; else a key.
    """
    known: str | None = getattr(request.state, CLIENT, None)
    if known is not None:
        return known
    keys = presented_keys(request.headers)
    return scope_of_key(keys[0]) if keys else ""


def scope_of_key(key: str) -> str:
    """The scope of a key without a name: a hash that does not tell it and may be written to disk."""
    return _hash(key.encode("latin-1"), b"outpace-scope")  # headers are latin-1


def scope_of_name(name: str) -> str:
    """The scope of a key's name; no key's own scope is ever the same."""
    return _hash(name.encode(), b"outpace-client")


def _hash(text: bytes, person: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16, person=person).hexdigest()
