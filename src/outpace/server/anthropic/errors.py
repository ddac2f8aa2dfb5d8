"""Errors in Anthropic's form.

`{"type": "error", "error": {"type", "message"}, "request_id"}`, as a body or as a stream's last event.
"""

from __future__ import annotations

from starlette.responses import Response

from outpace.server.encoding import to_json
from outpace.server.errors import APIError

OVERLOADED = 529
"""The API's own status: too many requests wait, try again."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    OVERLOADED: "overloaded_error",
}


def error_body(error: APIError, request_id: str) -> str:
    """The error as JSON text."""
    status = _status(error)
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    said = {"type": kind, "message": error.message}
    return to_json({"type": "error", "error": said, "request_id": request_id})


def anthropic_error(error: APIError, request_id: str) -> Response:
    """The error as an HTTP response."""
    return Response(
        error_body(error, request_id), _status(error), error.headers, media_type="application/json"
    )


def _status(error: APIError) -> int:
    return OVERLOADED if error.code == "overloaded" else error.status
