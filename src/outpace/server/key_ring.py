"""Every key that a server lets in, whose each is, and what its owner may ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from outpace.server.client import scope_of_key, scope_of_name
from outpace.server.keys import NamedKey, digest_of, find_key
from outpace.server.limits import KeyLimits
from outpace.server.settings import ServerSettings


class KeyRing:
    """The single key of the settings and those of their file, as it is at the moment."""

    def __init__(self, settings: ServerSettings) -> None:
        self._file = settings.api_keys
        self._single: tuple[NamedKey, ...] = ()
        if settings.api_key:
            self._single = (NamedKey("", digest_of(settings.api_key), ""),)
            self._single_scope = scope_of_key(settings.api_key)
        self._read: Sequence[NamedKey] | None = None  # what the rest was made of
        self._keys: Sequence[NamedKey] = ()
        self._limits: Mapping[str, KeyLimits] = {}

    def scope_of(self, presented: Sequence[str]) -> str | None:
        """Whose the first known one of these keys is, as a client's scope; None: none is known."""
        self._update()
        key = find_key(self._keys, presented)
        if key is None:
            return None
        return scope_of_name(key.name) if key.name else self._single_scope

    def limits(self) -> Mapping[str, KeyLimits]:
        """The limits of each key's owner, by the client's scope."""
        self._update()
        return self._limits

    def _update(self) -> None:
        named = self._file() if self._file is not None else ()
        if named is self._read:
            return
        self._read = named
        self._keys = (*named, *self._single)
        limits = {scope_of_name(key.name): key.limits for key in named}
        if self._single:
            limits.setdefault(self._single_scope, KeyLimits())
        self._limits = limits
