"""Responses that later ones go on from: in memory, bounded, each seen by its own client alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outpace.server.encoding import to_json

MAX_RESPONSES = 1024
MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response, the whole conversation up to its end, instructions left out, and its own input's items."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]
    items: Sequence[dict[str, Any]]
    scope: str  # the client's
    num_bytes: int

    @property
    def all_items(self) -> list[dict[str, Any]]:
        """The items of the input and of the output."""
        return [*self.items, *self.response.get("output", ())]


class ResponseStore:
    """Keeps the latest responses; the oldest go first. They do not survive the server."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._items: dict[
            tuple[str, str], tuple[StoredResponse, dict[str, Any]]
        ] = {}  # (scope, id) -> newest
        self._num_bytes = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._stored)

    def put(
        self,
        response: dict[str, Any],
        messages: list[dict[str, Any]],
        scope: str,
        items: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Keep a response with its conversation and its input's items."""
        num_bytes = len(to_json([response, messages, items]))
        if num_bytes > self._max_bytes:
            return
        stored = StoredResponse(response, messages, items, scope, num_bytes)
        self._stored[response["id"]] = stored
        self._items.update(((scope, item["id"]), (stored, item)) for item in stored.all_items)
        self._num_bytes += num_bytes
        while len(self._stored) > self._max_responses or self._num_bytes > self._max_bytes:
            self._forget(next(iter(self._stored)))

    def get(self, response_id: str, scope: str) -> StoredResponse | None:
        """A response of this client's, or None."""
        found = self._stored.get(response_id)
        return found if found is not None and found.scope == scope else None

    def item(self, item_id: str, scope: str) -> dict[str, Any] | None:
        """An item of this client's, of a response's input or output, or None."""
        found = self._items.get((scope, item_id))
        return None if found is None else found[1]

    def remove(self, response_id: str, scope: str) -> bool:
        """Forget a response of this client's; returns whether there was one."""
        if self.get(response_id, scope) is None:
            return False
        self._forget(response_id)
        return True

    def _forget(self, response_id: str) -> None:
        stored = self._stored.pop(response_id)
        self._num_bytes -= stored.num_bytes
        for item in stored.all_items:
            key = (stored.scope, item["id"])
            if key in self._items and self._items[key][0] is stored:
                del self._items[key]
