"""Responses that later ones go on from: in memory, bounded, each seen by its own client alone."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from outpace.server.encoding import to_json

MAX_RESPONSES = 1024
MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response, and the whole conversation up to its end, instructions left out."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]
    scope: str  # the client's
    num_bytes: int


class ResponseStore:
    """Keeps the latest responses; the oldest go first. They do not survive the server."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._num_bytes = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._stored)

    def put(self, response: dict[str, Any], messages: list[dict[str, Any]], scope: str) -> None:
        """Keep a response."""
        num_bytes = len(to_json([response, messages]))
        if num_bytes > self._max_bytes:
            return
        self._stored[response["id"]] = StoredResponse(response, messages, scope, num_bytes)
        self._num_bytes += num_bytes
        while len(self._stored) > self._max_responses or self._num_bytes > self._max_bytes:
            self._num_bytes -= self._stored.popitem(last=False)[1].num_bytes

    def get(self, response_id: str, scope: str) -> StoredResponse | None:
        """A response of this client's, or None."""
        found = self._stored.get(response_id)
        return found if found is not None and found.scope == scope else None

    def remove(self, response_id: str, scope: str) -> bool:
        """Forget a response of this client's; returns whether there was one."""
        if self.get(response_id, scope) is None:
            return False
        self._num_bytes -= self._stored.pop(response_id).num_bytes
        return True
