"""Request bodies: read within limits, then checked against a schema."""

from __future__ import annotations

import asyncio
import json
import math
import re
import zlib
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from outpace.server.errors import APIError
from outpace.server.settings import ServerSettings
from outpace.server.tracing import note_model

Model = TypeVar("Model", bound=BaseModel)

_LARGE_EXPONENT = re.compile(rb"[eE]\+?[0-9]{3}")
_DIGITS = b"0123456789"
_MOST_DIGITS = 308  # of a whole number that is below the largest float, whatever they are


async def read_json(request: Request, schema: type[Model], settings: ServerSettings) -> Model:
    """Read the request's body and check it against `schema`.

    Raises `APIError`: 413 for a body over the limit, 415 for an encoding that is not known here, 408 for one
    that does not arrive, 400 for what is not UTF-8, not JSON or not what the schema asks for.
    """
    try:
        async with asyncio.timeout(settings.read_timeout):
            body = await _read(request, settings.max_body_bytes)
    except TimeoutError:
        limit = f"{settings.read_timeout:g} s"
        raise APIError(408, f"the request's body did not arrive within {limit}", code="timeout") from None
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    return check_json(_decoded(body, encoding, settings.max_body_bytes), schema)


def check_json(body: bytes, schema: type[Model]) -> Model:
    """Check JSON text against `schema`. Raises `APIError` 400."""
    try:
        checked = schema.model_validate_json(body)
    except ValidationError as error:
        raise _explain(body, error.errors(include_url=False, include_context=False)) from None
    if _perhaps_not_finite(body):
        _check_finite(body)
    note_model(getattr(checked, "model", None))
    return checked


def _perhaps_not_finite(body: bytes) -> bool:
    """Whether the numbers need a closer look. Every request passes here, so it must be quick."""
    if b"NaN" in body or b"Infinity" in body:
        return True
    # A look at what stands before would cost a try at each place if it were in the expression.
    if any(body[found.start() - 1] in _DIGITS for found in _LARGE_EXPONENT.finditer(body, 1)):
        return True
    size = _MOST_DIGITS + 1  # so many digits in a row have one at a place that their number divides
    return any(
        _num_digits(body, place) >= size for place in range(0, len(body), size) if body[place] in _DIGITS
    )


def _num_digits(body: bytes, place: int) -> int:
    """How many digits stand in a row around a place, as far as `_MOST_DIGITS` to each side."""
    before = body[max(0, place - _MOST_DIGITS) : place]
    after = body[place : place + _MOST_DIGITS + 1]
    return len(before) - len(before.rstrip(_DIGITS)) + len(after) - len(after.lstrip(_DIGITS))


def _check_finite(body: bytes) -> None:
    """Refuse numbers that no answer could show again; of fields of any content schemas know no more."""

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            shown = text if len(text) < 40 else f"{text[:40]}..."
            raise APIError(400, f"the body is not JSON: {shown} is no number", code="invalid_json")
        return value

    json.loads(body, parse_constant=number, parse_float=number, parse_int=number)


async def _read(request: Request, limit: int) -> bytes:
    """The body. One over `limit` is read on (up to twice the limit) so that the client gets our answer."""
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= limit:
                chunks.append(chunk)
            elif size > 2 * limit:
                break
    except ClientDisconnect:
        raise APIError(499, "the client closed the connection", code="client_disconnected") from None
    if size > limit:
        raise _too_large(limit)
    return b"".join(chunks)


def _decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """The body as it was before it was packed, at most `limit` bytes."""
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        message = f"content-encoding {encoding[:40]!r} is not known here; send gzip, deflate or none"
        headers = {"accept-encoding": "gzip, deflate"}
        raise APIError(415, message, code="unsupported_encoding", headers=headers)
    unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # the header says which of the two it is
    try:
        plain = unpack.decompress(body, limit + 1)
    except zlib.error as error:
        raise APIError(400, f"the body is no {encoding}: {error}", code="invalid_encoding") from None
    if len(plain) > limit:
        raise _too_large(limit)
    if not unpack.eof:
        raise APIError(400, f"the body is no {encoding}: its end is missing", code="invalid_encoding")
    return plain


def _too_large(limit: int) -> APIError:
    return APIError(413, f"the request's body is over the limit of {limit} bytes", code="body_too_large")


def _explain(body: bytes, errors: Sequence[ErrorDetails]) -> APIError:
    """The error that points deepest into the request, in OpenAI's words."""
    if errors[0]["type"] == "json_invalid":
        try:
            body.decode()
        except UnicodeDecodeError as error:
            return APIError(
                400, f"the body is not UTF-8: {error.reason} at byte {error.start}", code="invalid_utf8"
            )
        return APIError(400, f"the body is not JSON: {errors[0]['msg']}", code="invalid_json")
    value: object = json.loads(body)
    located = [(_path(value, error["loc"], missing=error["type"] == "missing"), error) for error in errors]
    deepest = max((path for path, _ in located), key=_depth)
    at_deepest = [error for path, error in located if path == deepest]
    # Errors of a union's members say the same of one place: "a string" or "a list".
    messages = " or ".join(dict.fromkeys(_message(error) for error in at_deepest))
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in deepest).lstrip(".")
    missing = at_deepest[0]["type"] == "missing"
    wrong_type = at_deepest[0]["type"].endswith("_type")
    code = "missing_required_parameter" if missing else "invalid_type" if wrong_type else "invalid_value"
    where = f"'{param}'" if param else "the body"
    return APIError(400, f"invalid {where}: {messages}", param=param or None, code=code)


def _depth(path: list[int | str]) -> tuple[int, list[int]]:
    """Orders places in a request: how deep, then how far into lists."""
    return len(path), [part if isinstance(part, int) else -1 for part in path]


def _message(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _path(value: object, loc: tuple[int | str, ...], *, missing: bool) -> list[int | str]:
    """Pydantic's location without the names of union members: what is in the request, or is `missing`."""
    path: list[int | str] = []
    for position, part in enumerate(loc):
        if isinstance(value, list) and isinstance(part, int):
            items = cast("list[Any]", value)
            value = items[part] if part < len(items) else None
        elif isinstance(value, dict) and part in value:
            value = cast("dict[str, Any]", value)[str(part)]
        elif not (missing and isinstance(value, dict) and position == len(loc) - 1):
            continue
        path.append(part)
    return path
