"""Errors on the wire: every failure becomes one `APIError`, and that one JSON body.

It carries what OpenAI's form shows; the other dialect makes its own of it. OpenAI's is
`{"error": {"message", "type", "param", "code"}}`, with the status that makes the `openai` client
raise the exception its users expect.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping

from starlette.responses import Response

from outpace.errors import (
    ContextLengthError,
    InvalidParameterError,
    OutOfMemoryError,
    OutpaceError,
    OverloadedError,
    UnsupportedModelError,
    UsageError,
)

logger = logging.getLogger("outpace.server")

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
CONTEXT_LENGTH = "context_length_exceeded"
"""The code of a prompt that is longer than the context; coding agents then summarize."""
MAX_RETRY_AFTER = 60
"""Seconds; an estimate beyond is worth little."""


class APIError(Exception):
    """An error as the client sees it.

    Attributes: `status`, the HTTP status; `message`; `type`, OpenAI's class of the error; `param`,
    the request's field at fault or None; `code`, for programs, or None; `headers`, extra ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID_REQUEST,  # noqa: A002 - the wire's own name
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> str:
        """The error as JSON text."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False)

    def response(self) -> Response:
        """The error as an HTTP response."""
        return Response(self.body(), self.status, self.headers, media_type="application/json")


def unsupported(param: str, message: str) -> APIError:
    """A well-formed request for something that Outpace does not do."""
    return APIError(400, message, param=param, code="unsupported_parameter")


def missing(where: str, field: str) -> APIError:
    """A request without a field that it needs; `where` is the field's owner."""
    param = f"{where}.{field}"
    return APIError(400, f"{where} has no '{field}'", param=param, code="missing_required_parameter")


def given(value: str | None, where: str, field: str) -> str:
    """A text that must be there, and not empty. Raises `APIError`; `where` is the field's owner."""
    if not value:
        raise missing(where, field)
    return value


def from_exception(error: Exception, renamed: Mapping[str, str] | None = None) -> APIError:
    """Translate what the engine raised.

    `renamed` maps the engine's parameter names to the wire's where they differ. What is not one of
    Outpace's own errors is logged with its traceback and told to the client as an internal error.
    """
    match error:
        case APIError():
            answer = error
        case InvalidParameterError(parameter=param):
            code = CONTEXT_LENGTH if isinstance(error, ContextLengthError) else "invalid_value"
            name = (renamed or {}).get(param or "", param)
            message = str(error)
            if param and name and message.startswith(param):
                message = name + message.removeprefix(param)
            answer = APIError(400, message, param=name, code=code)
        case OutOfMemoryError():  # the KV cache can never hold this prompt
            answer = APIError(400, str(error), code=CONTEXT_LENGTH)
        case UnsupportedModelError():  # for instance no chat template
            answer = APIError(400, str(error), code="unsupported_by_model")
        case UsageError():
            answer = APIError(400, str(error), code="invalid_request")
        case OverloadedError(retry_after=seconds):
            headers = {"retry-after": str(max(1, min(math.ceil(seconds), MAX_RETRY_AFTER)))}
            answer = APIError(429, str(error), type="rate_limit_error", code="overloaded", headers=headers)
        case OutpaceError():
            logger.error("request failed: %s", error)
            answer = APIError(500, str(error), type=SERVER_ERROR, code="engine_error")
        case _:
            logger.error("internal error", exc_info=error)
            answer = internal_error()
    return answer


def internal_error() -> APIError:
    """The answer to a defect of ours, without its details."""
    message = "internal error; the server's log has the details"
    return APIError(500, message, type=SERVER_ERROR, code="internal_error")
