"""When an answer must be there: `deadline_ms` in a request's body, or a header of every request."""

from __future__ import annotations

import time

from starlette.requests import HTTPConnection
from starlette.types import Scope

from outpace.server.errors import SERVER_ERROR, APIError

HEADER = "x-outpace-deadline-ms"
"""Milliseconds that the request may take in all. The body's `deadline_ms` goes before it."""
LONGEST_MS = 86_400_000.0
"""A day."""


def note_arrival(scope: Scope) -> None:
    """A request's head has come: its deadline counts from here."""
    scope.setdefault("state", {})["arrived_at"] = time.perf_counter()


def deadline_of(
    connection: HTTPConnection, deadline_ms: float | None, arrived_at: float | None = None
) -> float:
    """When the answer must be there, in `time.perf_counter()` seconds; 0: any time. Raises `APIError`.

    `arrived_at`: when the request came, where the connection's head says nothing about that.
    """
    name = "deadline_ms"
    if deadline_ms is None:
        text = connection.headers.get(HEADER)
        if text is None:
            return 0.0
        name = HEADER
        try:
            deadline_ms = float(text)
        except ValueError:
            deadline_ms = 0.0
    if not 0.0 < deadline_ms <= LONGEST_MS:
        message = f"'{name}' must be more than 0 and at most {LONGEST_MS:.0f} milliseconds"
        raise APIError(400, message, param=name, code="invalid_value")
    since: float = arrived_at or connection.scope.get("state", {}).get("arrived_at") or time.perf_counter()
    return since + deadline_ms / 1000


def deadline_exceeded(reason: str) -> APIError:
    """The error of a request whose deadline passes before there is an answer."""
    # The clients' libraries would send it again, and wait as long for nothing.
    headers = {"x-should-retry": "false"}
    message = f"no answer within the request's deadline ({reason})"
    return APIError(408, message, type=SERVER_ERROR, code="deadline_exceeded", headers=headers)
